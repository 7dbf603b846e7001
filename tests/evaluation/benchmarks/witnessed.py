"""Answers to GSM8K that another harness scores, too: where both agree, and where they do not."""

from __future__ import annotations

# (the right answer, what was written, whether it is right)
AGREE = (
    ("18", "16 - 3 - 4 = 9 eggs, 9 * 2 = 18", True),
    ("18", "So she makes $18 every day.", True),
    ("18", "#### 18", True),
    ("18", "The answer is 18.", True),
    ("18", "The answer is 17.", False),
    ("18", "She makes 18 dollars a day, that is 126 a week.", False),
    ("126", "She makes 18 dollars a day, that is 126 a week.", True),
    ("18", "I do not know.", False),
    ("18", "", False),
    ("18", "eighteen", False),
    ("3", "3", True),
    ("3", "It takes 2 + 1 = 3 bolts", True),
    ("3", "It takes 2 + 1 bolts", False),
    ("70000", "The profit is $70,000", True),
    ("70000", "The profit is 70000 dollars.", True),
    ("70000", "The profit is 7,000.", False),
    ("1000000", "1,000,000", True),
    ("540", "3 * 60 = 180; 180 * 3 = 540 meters", True),
    ("540", "3 * 60 = 180 meters", False),
    ("-5", "It is -5 degrees", True),
    ("-5", "It is 5 degrees", False),
    ("5", "It is -5 degrees", False),
    ("64", "First 5, then 5 * 0.6 = 3, in all 64", True),
    ("260", "Die Antwort ist 260", True),
    ("260", "答案是260", True),
    ("20", "20 cups of feed", True),
    ("20", "20 cups of feed, 15 of them in the morning", False),
    ("45", "She has 45", True),
    ("45", "She has\n45\n", True),
    ("460", "Regular pay is 40*10=$400; overtime 5*12=$60; in all $460", True),
)
# What lm-eval compares as a text, or reads past.
DIFFER = (
    ("18", "It is 18.0", True, False),
    ("18", "\\boxed{18} after 7 days", True, False),
    ("18", "It is \\frac{36}{2}, so \\boxed{\\frac{36}{2}}", True, False),
)
