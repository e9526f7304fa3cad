"""Physics-IQ: how well generated videos go on where real ones were cut, by where, when and how much things move.

Each of 66 scenarios was filmed from 3 sides, twice: the second take says how much two true outcomes differ, and the
score is relative to that. `masks` finds what moves, `overlap` compares two clips, `score` sums up in the original and
in the Verified way, `layout` reads the official folders and lists what is wrong with them, `measure` does one view,
`run` all of them, `result` sums up, `films` draws what moves for people, `export` gives videos their official names in
a new folder.

References: "Do generative video models understand physical principles?" (Motamed et al., 2025, arXiv 2501.09038) and
its public code; the Verified score: arXiv 2606.18943. The table of scenarios and categories (`scenarios.csv`) is
theirs, CC BY 4.0.
"""
