"""LoRAs (arXiv:2106.09685) that are added to a model's weights when it is loaded: reading each layout, placing, merging.

a file -> pairs.py: its factors, two by two, under the names it has for them -> places.py: the layers that these are
       -> merge.py: what is added to each weight
"""
