# The two commands for a fresh clone: `make demo` shows a video, `make test` runs the tests.
# Everything is installed into .venv, with the versions that were tested (constraints.txt).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-browser check fix docs man fuzz kill-test golden bench bench-full bench-windows bench-batch bench-gallery train-demo evaluate-demo memory-table work-table memory-report clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## make a video from a prompt with the embedded model, and enlarge it
	$(BIN)/t2v generate "a red boat moving right on the sea" --preset demo --seed 1 -o demo.mp4 --overwrite
	$(BIN)/t2v upscale demo.mp4 --preset demo-XL --seed 1 -o demo-xl.mp4 --overwrite
	$(BIN)/t2v sheet demo.mp4 -o demo.png --scale 3 --overwrite
	$(BIN)/t2v sheet demo-xl.mp4 -o demo-xl.png --overwrite
	@echo
	@echo "videos:         $(CURDIR)/demo.mp4  $(CURDIR)/demo-xl.mp4"
	@echo "contact sheets: $(CURDIR)/demo.png  $(CURDIR)/demo-xl.png"

test: $(READY)  ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal  # neighbours stay together, and share what their file sets up

fuzz: $(READY)  ## give the readers 10,000 damaged videos and thousands of other hostile inputs (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/videos.py --count 10000
	OMP_NUM_THREADS=1 T2V_FUZZ_EXAMPLES=3000 $(BIN)/python -m pytest tests/test_fuzz.py tests/test_hostile_models.py tests/test_hostile_hub.py

kill-test: $(READY)  ## kill a run 200 times at random moments, and go on with it (some 20 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_test.py --count 200 --seed 1

test-slow: $(READY)  ## run the tests that take minutes or gigabytes (full-size models, Ray)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow
	OMP_NUM_THREADS=1 T2V_FUZZ_EXAMPLES=200 $(BIN)/python -m pytest tests/test_fuzz.py tests/test_hostile_models.py tests/test_hostile_hub.py

test-browser: $(READY)  ## run the tests of t2v gallery's page in Chromium (apt-get install chromium, or T2V_CHROMIUM=PATH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,browser]'
	OMP_NUM_THREADS=1 T2V_BROWSER=1 $(BIN)/python -m pytest tests/test_gallery_browser.py

check: $(READY)  ## lint, format, types, and documents that have drifted; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m t2vcli.cli.reference --check docs/cli.md

fix: $(READY)  ## apply the formatter and the linter's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## write docs/cli.md again from the help texts
	$(BIN)/python -m t2vcli.cli.reference docs/cli.md

man: $(READY)  ## write man pages into man/ (man -l man/t2v.1 shows one; copy them to a man1 folder of MANPATH)
	$(BIN)/python -m t2vcli.cli.man man

golden: $(READY)  ## write the golden numbers again, from diffusers' own pipelines
	$(BIN)/python tests/make_goldens.py

bench: $(READY)  ## measure beside named baselines, and write benchmarks/REPORT.md (under 15 minutes)
	$(BIN)/python -m benchmarks.run

bench-full: $(READY)  ## the same, and models of full size (an hour, 16 GiB)
	$(BIN)/python -m benchmarks.run --full --seconds 120 --limit 1200

bench-windows: $(READY)  ## measure windows, loops, tiles and joints on the embedded model (most of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.windows

bench-batch: $(READY)  ## measure batches: beside the bare loop, over Ray, and long lists and journals
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.batch
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.batch_ray

bench-gallery: $(READY)  ## measure t2v gallery's page in Chromium: 1,000 and 10,000 clips (some ten minutes)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gallery

train-demo: $(READY)  ## train the embedded model from nothing, or on with INIT=t2vcli/demo (hours; resumes where it stopped)
	bash training/train.sh $(BIN)/python training/run "$(INIT)"

evaluate-demo: $(READY)  ## score the embedded model on 200 held-out prompts, and demo-XL (a quarter of an hour)
	$(BIN)/python -m training.evaluate all --json training/run/scores.json

memory-table: $(READY)  ## trace the predicted memory of the presets again (most of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory_table

work-table: $(READY)  ## count what the stages have to do anew, for predictions of time (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.work_table

memory-report: $(READY)  ## write docs/memory.md and its plot from the table
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[report]'
	$(BIN)/python -m benchmarks.memory_report

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
