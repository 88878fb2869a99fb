"""Makes a better generator or retriever. May import rag; never agents."""
