"""Everyday questions, for measurements that depend on what an answer says, such as guesses of a draft."""

from __future__ import annotations

QUESTIONS = (
    "Why is the sky blue?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Explain how a bicycle stays upright.",
    "List five things to pack for a trip to the mountains.",
    "What is the difference between a virus and a bacterium?",
    "Write a short story about a lighthouse keeper.",
    "How do I make pancakes?",
    "What are the causes of the First World War?",
    "Give me tips for a job interview.",
    "How does a refrigerator work?",
)
