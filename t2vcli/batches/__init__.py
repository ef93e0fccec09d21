"""Many clips from one list: read it, decide what is missing, have it made, and keep a journal.

files.py     a list of jobs (text, JSON Lines, YAML, CSV) -> entries with line numbers
fields.py    the names that a job may have, and values from text
joblist.py   entries -> planned jobs: seed, name, identity; all mistakes at once; order, groups and shards
journal.py   what became of each job, one line each, safe against a kill at any moment
made.py      whether a job's clip is there already
claims.py    which process makes which output
workers.py   what the loop asks of those who do the work
loop.py      the driver: order, attempts, failures, stopping
"""
