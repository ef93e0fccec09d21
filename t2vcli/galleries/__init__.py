"""A page to look at many clips: which a folder holds, what each is, and the HTML file that shows them. No torch.

found.py     which videos lie in a folder
clips.py     what each is: its facts, its recipe as flat fields, a small picture
page.py      the HTML file, from page.html, page.css and page.js
make.py      the story: a folder becomes a page
"""
