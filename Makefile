PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
DEMO := runs/demo
DEMO_NBODY := runs/demo-nbody
CLASSICS := runs/classics
CLASSIC_NAMES := $(sort $(basename $(notdir $(wildcard configs/classics/*.toml))))
CLASSIC_SECONDS := 600

.PHONY: demo demo-nbody classics test test-all docs lint clean

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,cluster,export,flow,geant4,nbody,tensorboard]"
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

# Train on real Geant4 photons, generate showers at the energies of the held-out ones, compare. About seven minutes.
demo: $(STAMP)
	@rm -rf $(DEMO)
	$(BIN)/calogen train configs/demo.toml --data data/calogan-gamma --energy-conditioned --out $(DEMO)/run
	$(BIN)/calogen generate $(DEMO)/run --like data/calogan-gamma/test -n 35000 --out $(DEMO)/showers
	$(BIN)/calogen compare data/calogan-gamma $(DEMO)/showers --out $(DEMO)/report
	@echo "open $(DEMO)/report/report.html in a browser"

# The same with maps: train on the shipped N-body maps, generate at the cosmologies of the held-out ones, draw, compare.
demo-nbody: $(STAMP)
	@rm -rf $(DEMO_NBODY)
	$(BIN)/calogen train configs/demo-nbody.toml --data data/nbody-64 --out $(DEMO_NBODY)/run
	$(BIN)/calogen generate $(DEMO_NBODY)/run --like data/nbody-64/test -n 3000 --out $(DEMO_NBODY)/maps
	$(BIN)/calogen gallery $(DEMO_NBODY)/run --out $(DEMO_NBODY)/gallery
	$(BIN)/calogen compare data/nbody-64 $(DEMO_NBODY)/maps --training data/nbody-64 --out $(DEMO_NBODY)/report
	@echo "open $(DEMO_NBODY)/report/report.html in a browser; figures of the surrogate itself are in $(DEMO_NBODY)/gallery"

# Earlier networks and objectives on the same photons, ten minutes of one core each, in one table. What is done is not
# done again, so it can be stopped at any time; CLASSIC_SECONDS=60 is a quick look (make clean forgets it).
classics: $(CLASSIC_NAMES:%=$(CLASSICS)/%/generated)
	$(BIN)/calogen compare data/calogan-gamma $(foreach name,$(CLASSIC_NAMES),$(name)=$(CLASSICS)/$(name)/showers) \
	    --classifier light --out $(CLASSICS)/report
	@echo "open $(CLASSICS)/report/report.html in a browser"

$(CLASSICS)/%/trained: configs/classics/%.toml | $(STAMP)
	@rm -rf $(@D)
	OMP_NUM_THREADS=1 $(BIN)/calogen train $< --data data/calogan-gamma --out $(@D)/run \
	    --set training.time=$(CLASSIC_SECONDS)
	@touch $@

$(CLASSICS)/%/generated: $(CLASSICS)/%/trained
	OMP_NUM_THREADS=1 $(BIN)/calogen generate $(@D)/run --like data/calogan-gamma/test --out $(@D)/showers --workers 1
	@touch $@

.PRECIOUS: $(CLASSICS)/%/trained

# Two processes, each with whole files of tests, so that what tests of a file share is made once.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow or not slow"

# The site, in docs/_build/html. Warnings are errors, and all cells of all pages run. One page after another: of
# parallel readers Sphinx waits forever for one that was killed.
docs: $(DOCS_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -E -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html in a browser"

# Type checks run on an installed copy: static tools do not follow the mapping of analysis/ into the package.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/types .
	@rm -rf build/lib build/bdist.*
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p calogen

clean:
	rm -rf build runs docs/_build $(VENV) *.egg-info
