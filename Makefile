# Two commands do all the set-up: `make weekly` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SAMPLE ?= data/sample
export HF_HUB_OFFLINE ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help weekly replay test lab bench soak notebooks export readme docs drift lint install extras test-extras clean
help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

$(READY): settings.ini setup.py constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing (two to four minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	@touch $(READY)

install: $(READY) ## environment and packages

weekly: $(READY) ## sample workspace and this week's playlists and report
	@$(BIN)/sunorecsys sample --workspace $(SAMPLE)
	@$(BIN)/sunorecsys weekly --workspace $(SAMPLE)

replay: $(READY) ## ten weeks in a row on the sample, quality by week
	@$(BIN)/sunorecsys sample --workspace $(SAMPLE)
	@$(BIN)/sunorecsys replay --workspace $(SAMPLE)

test: $(READY) drift lint ## drift gate, ruff, layout, all notebooks, pytest
	@$(BIN)/nbdev_test --n_workers 2
	@$(BIN)/python -m pytest tests -n 2 --dist worksteal

export: $(READY) ## notebooks to modules, notebooks cleaned, README made
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean
	@$(BIN)/python -c "from pathlib import Path; from sunorecsys.notebooks import as_readme; as_readme(Path('nbs/index.ipynb'), Path('README.md'))"

readme: export ## README.md from nbs/index.ipynb

docs: $(READY) ## the docs site, in _docs/site
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt mkdocs mkdocs-material mkdocs-jupyter
	@$(BIN)/python -c "from pathlib import Path; from sunorecsys.notebooks import as_site; as_site(Path('nbs'), Path('_docs'))"
	@$(BIN)/mkdocs build --quiet --config-file _docs/mkdocs.yml && echo "docs: _docs/site/index.html"

drift: $(READY) ## fail when modules, notebooks or README are not what the notebooks say
	@before=$$(git status --porcelain; git diff HEAD | git hash-object --stdin); $(MAKE) --no-print-directory export; \
	after=$$(git status --porcelain; git diff HEAD | git hash-object --stdin); \
	test "$$before" = "$$after" || { git --no-pager diff --stat; echo "drift: 'make export' changed the files above; commit them"; exit 1; }

lint: $(READY) ## ruff
	@$(BIN)/ruff check sunorecsys tests benchmarks

notebooks: $(READY) ## execute all notebooks in place on the sample and store their outputs
	@$(BIN)/sunorecsys sample --workspace $(SAMPLE) && $(BIN)/sunorecsys weekly --workspace $(SAMPLE) --log-level WARNING
	@for nb in $(or $(NB),nbs/*.ipynb); do echo "$$nb"; \
	$(BIN)/python -c "import sys; from pathlib import Path; from sunorecsys.notebooks import renew; renew(Path(sys.argv[1]))" $$nb || exit 1; done
	@$(MAKE) --no-print-directory export

lab: $(READY) ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab nbs

bench: $(READY) ## speed: a table and JSON, with the machine's description
	@$(BIN)/python benchmarks/run.py

soak: $(READY) ## a hundred killed weekly runs
	@KILLS=100 $(BIN)/python -m pytest tests/test_faults.py -k killed

extras: $(READY) ## optional packages whose pins do not resolve with ours: laion-clap, musicnn's weights, audiobox
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torchlibrosa librosa scikit-learn h5py ftfy
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps laion-clap==1.1.7 musicnn==0.1.0 audiobox_aesthetics==0.0.4

test-extras: extras ## what only runs with the optional packages
	@for nb in nbs/32b_*.ipynb nbs/34_*.ipynb nbs/52_*.ipynb; do $(BIN)/nbdev_test --path $$nb --n_workers 1 || exit 1; done
	@$(BIN)/python -m pytest tests/test_musicnn.py -n 2

clean: ## what was made: environment, sample, caches
	rm -rf .venv $(SAMPLE) _docs .cache build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
