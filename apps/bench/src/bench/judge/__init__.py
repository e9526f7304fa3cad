"""A judge of one's own: a vision-language model that is asked VideoPhy-2's questions, and how far to believe it.

Its figures are never those of a benchmark's rater: the result says `kind="judge"` and the model's name, and an answer
that cannot be read counts as unread, not as a 0.
"""
