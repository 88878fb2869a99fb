"""Everything a person touches: command line and pages. May import agents, tuning and rag."""
