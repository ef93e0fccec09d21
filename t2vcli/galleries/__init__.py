"""Clips looked at together: a page of many, a sheet, a video with several side by side. No torch.

found.py      which videos lie in a folder
clips.py      what each is: its facts, its recipe as flat fields, a small picture
page.py       the HTML file, from page.html, page.css and page.js
make.py       the story: a folder becomes a page
together.py   a few clips opened, with labels that say what differs among them
sheets.py     the story: their frames become one PNG
beside.py     the story: they become one video
"""
