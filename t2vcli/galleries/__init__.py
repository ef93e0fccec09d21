"""Clips looked at together: a page of many, a sheet, a video with several side by side. No torch.

found.py      which videos lie in a folder
fields.py     what is known of a clip as flat fields, and in which of them clips differ
clips.py      what each is: its fields, the command that makes it, and a small picture
page.py       the HTML file, from page.html, page.css and page.js
make.py       the story: a folder becomes a page
together.py   a few clips opened, with labels that say what differs among them
sheets.py     the story: their frames become one PNG
compare.py    the story: they become one video
"""
