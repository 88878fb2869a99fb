"""Built-in instructions of a general kind: what a model is asked to keep doing while it learns something else.

The base model's own answers to them are trained on, so no text of others is needed. None of the questions stands in the
suite that measures forgetting (`agents.checks.GENERAL`).
"""

from __future__ import annotations

SHORT_SYSTEM = "Answer the question with a few words."
"""As closed-book prompts have it (`rag.prompt`)."""

INSTRUCTIONS: tuple[str, ...] = (
    "Write one sentence about the sea.",
    "Explain in two sentences why the sky is blue.",
    "Give three tips for sleeping well.",
    "Rewrite politely: Send me the report now.",
    "Translate into French: Good morning, my friend.",
    "List four fruits.",
    "What is a noun?",
    "Write a short greeting for a new colleague.",
    "Summarise in one sentence: The meeting was moved from Monday to Thursday because two people were ill.",
    "Name two uses of a hammer.",
    "How do I boil an egg?",
    "Give a synonym for happy.",
    "Explain what a library is to a child.",
    "Write a two-line poem about rain.",
    "What should I take with me on a hike?",
    "Turn into a question: The train leaves at noon.",
    "Correct the grammar: She go to school every day.",
    "Name a polite way to refuse an invitation.",
    "What is the difference between a cat and a dog?",
    "Give an example of a renewable source of energy.",
    "Write a headline for a story about a lost bicycle.",
    "What does a carpenter do?",
    "Describe the taste of a lemon.",
    "How can one save water at home?",
    "Write an e-mail subject for a holiday request.",
    "Continue the story: The old clock stopped at midnight.",
    "Sort by size, smallest first: elephant, mouse, dog.",
    "Is the following sentence positive or negative? I loved the concert.",
    "Give one reason to learn a second language.",
    "What is a verb? Give an example.",
    "Explain how to tie a simple knot.",
    "What is the purpose of a bridge?",
)

SHORT: tuple[str, ...] = (
    "What is the capital of Spain?",
    "What is the capital of Germany?",
    "On which continent is Kenya?",
    "Which season follows winter?",
    "How many minutes are there in an hour?",
    "How many wheels does a bicycle have?",
    "Which animal gives us wool?",
    "What colour is grass?",
    "What is four times two?",
    "What is ten minus three?",
    "Which metal rusts?",
    "What do bees make?",
    "Who wrote Hamlet?",
    "Which planet do we live on?",
    "What is the opposite of big?",
    "What is the plural of child?",
    "Which sense do we use to hear?",
    "What is the first month of the year?",
    "Which language is spoken in Mexico?",
    "What does a thermometer measure?",
    "What is the chemical symbol of oxygen?",
    "In which country is the Eiffel Tower?",
    "Which ocean lies between Europe and America?",
    "What is the freezing point of water in degrees Celsius?",
)
