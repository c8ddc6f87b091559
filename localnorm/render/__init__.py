"""Tables turned into what people read: the paper's numbers, LaTeX, the README's block, REPRODUCING's tables, web pages.

Each renderer is a stage, and formats numbers that are computed elsewhere: `python -m localnorm.render numbers`.
"""
