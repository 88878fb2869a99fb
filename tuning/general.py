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

_ASKED = """
What is the capital of {}? Spain, Germany, Norway, Poland, Portugal, Greece, Canada, China, India, Russia, Cuba
What is the capital of {}? Ireland, Austria
On which continent is {}? Kenya, Brazil, Canada, India, Norway, Peru, Nigeria, Vietnam
In which country is {}? the Eiffel Tower, the Colosseum, Big Ben, the Taj Mahal, Mount Fuji, Machu Picchu
In which country is {}? the Statue of Liberty, the Kremlin
Which language is spoken in {}? Mexico, Germany, Egypt, Japan, Austria, Russia
Which ocean {}? lies between Europe and America, lies between Africa and Australia, lies around the North Pole
What is the longest river in {}? Africa, Europe, North America
What is the highest mountain {}? on Earth, in Africa, in Europe
Which planet {}? do we live on, is closest to the Sun, has the widest rings, is farthest from the Sun
Which planet {}? is the hottest
What is the chemical symbol of {}? oxygen, iron, silver, hydrogen, carbon, sodium, helium
Which gas {}? do we breathe in, makes up most of the air, fills balloons that fly, is in fizzy drinks
What is {} called? water that falls from clouds, the hole of a volcano, a scientist who studies stars
What is {} called? a person who bakes bread, a doctor for teeth, a baby dog, a baby cat, a home for bees
What is {} called? molten rock, the centre of an atom
How many {}? minutes are there in an hour, seconds are there in a minute, weeks are there in a year
How many {}? days has a leap year, letters has the English alphabet, continents are there, planets go round the Sun
How many {}? players has a football team, cents make a dollar, degrees has a right angle
How many {}? wheels does a bicycle have, legs does an insect have, legs does a dog have, arms does an octopus have
How many {}? sides does a square have, sides does a hexagon have, strings does a violin have
How many {}? fingers do two hands have
What is {}? four times two, ten minus three, six plus six, nine times three, half of fifty, the square root of 49
What is {}? twenty divided by five, seven squared, a quarter of forty, eight minus eight
Who wrote {}? Hamlet, Don Quixote, War and Peace, Oliver Twist, the Odyssey, Moby Dick, Faust, Pride and Prejudice
Who painted {}? Guernica, The Starry Night, The Night Watch, The Scream, the ceiling of the Sistine Chapel
Who {}? discovered penicillin, invented the telephone, first walked on the Moon, composed the Ninth Symphony
Who {}? described the law of gravity, found the element radium, led India to independence
Who {}? wrote the theory of evolution
In which year did {}? the First World War begin, the Berlin Wall fall, people first walk on the Moon
In which year did {}? Columbus reach America, the Titanic sink, the French Revolution begin
What is the opposite of {}? big, up, fast, light, young, full, early, rich, loud, open, easy, wet
What is the plural of {}? child, foot, tooth, man, leaf, city, sheep, knife
What is the past tense of {}? go, see, write, bring, eat, sing
What colour is {}? grass, snow, coal, a ripe banana, blood, a clear sky, an emerald
What colour do you get by mixing {}? red and yellow, red and blue, black and white
Which animal {}? gives us wool, barks, has a trunk, carries its young in a pouch, gives us milk, builds dams
Which animal {}? is the fastest on land, is the largest on Earth
Which sense do we use to {}? hear, see, smell, taste
Which organ {}? do we think with, do we breathe with, cleans the blood, digests food
What does {} measure? a thermometer, a clock, a ruler, a scale, a barometer
What do {}? bees make, cows eat, spiders spin, bakers bake, hens lay
Which metal {}? rusts, is liquid at room temperature, are electric wires made of
Which season follows {}? winter, spring, summer
What is the {} of the year? first month, last month, shortest month
Which day follows {}? Monday, Friday, Sunday
What is the freezing point of water in degrees {}? Celsius, Fahrenheit
"""


def _spelled(line: str) -> list[str]:
    """From "Which {}? a, b" the questions "Which a?" and "Which b?"."""
    form, _, whats = line.partition("? ")
    return [f"{form.format(what)}?" for what in whats.split(", ")]


SHORT: tuple[str, ...] = tuple(question for line in _ASKED.strip().split("\n") for question in _spelled(line))
"""Questions that are answered with a few words. So many, because each row is seen again and again when there are few:
from two dozen a model learns their answers by heart and forgets others."""
