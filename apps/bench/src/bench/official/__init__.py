"""The field's benchmarks: what their scripts want to be given, and what their outputs say.

One module a benchmark. Each knows its prompts, the layout or tables that its official code reads, and the arithmetic
from that code's outputs to the published figures; none runs a judge's network, except `rater`, which starts VideoPhy's
own code in an environment of its own. Nothing here renames, moves or overwrites a video.
"""
