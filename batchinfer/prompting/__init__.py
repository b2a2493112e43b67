"""Rows go in, prompts come out; an answer goes in, what is wrong with its shape comes out."""
