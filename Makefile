# Every target runs in the project's own virtual environment. CI calls the same targets.
PYTHON ?= python3
VENV ?= .venv
PY ?= $(VENV)/bin/python
DEMO ?= demo
DEMO_EPOCHS ?= 8
LGG_ROOT ?= data/kaggle_3m
BUNDLE ?= basic_unet
RECIPE ?= cpu
SHORT_RECIPE ?= cpu_quarter
FOLDS ?= 5
COUNT ?= 20

.DEFAULT_GOAL := help
.PHONY: help env demo demo-run test coverage installed torture audit lint format docs pictures release bundles claims verify-claims manifest train crossval case-report evaluate clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: $(VENV)/.installed ## Make the virtual environment .venv with the pinned versions

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python %d.%d found, 3.11 or newer needed: make PYTHON=/path/to/python" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@# If pip finds torch on this machine (find-links), such as a CPU build, it does not download torch.
	@sed -n '/^torch==/,/[^\\]$$/p' constraints.txt > $(VENV)/torch.txt
	@$(PY) -m pip install --quiet --no-index --no-deps --require-hashes --requirement $(VENV)/torch.txt 2> $(VENV)/torch.log || true
	$(PY) -m pip install --quiet --require-hashes --no-deps --requirement constraints.txt
	@# This installs the project itself and, for CUDA, the libraries that torch pins.
	$(PY) -m pip install --quiet --no-build-isolation --editable '.[dev]'
	@touch $@

demo: env ## Try all steps on phantoms: manifest, a few minutes of training, evaluation with pictures, report
	@$(MAKE) --no-print-directory demo-run

demo-run:
	$(PY) -m pipeline.phantom "$(DEMO)"/phantoms --patients 24 --seed 0
	$(PY) -m pipeline.manifest "$(DEMO)"/phantoms/kaggle_3m --out "$(DEMO)"/manifest --split random --validation-fraction 0.25
	$(PY) -W ignore -m monai.bundle run --config_file bundles/basic_unet/configs/train.json \
	  --dataset_dir "$(DEMO)"/manifest --ckpt_dir "$(DEMO)"/model --output_dir "$(DEMO)"/model \
	  --image_size 96 --max_epochs $(DEMO_EPOCHS) --steps_per_epoch 40 --val_interval 4 --amp False \
	  $$(test -z "$$(ls "$(DEMO)"/model/checkpoint_*.pt 2> /dev/null)" || echo --resume True)
	$(PY) -m pipeline.evaluate --manifest "$(DEMO)"/manifest --bundle bundles/basic_unet \
	  --weights "$(DEMO)"/model/model.pt --split validation --out "$(DEMO)"/results --figures
	$(PY) -m pipeline.report "$(DEMO)"/results --out "$(DEMO)"/report.html

test: env ## Run all tests in two processes; LGG_ROOT=data/kaggle_3m adds the tests on real patients
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: env ## Run all tests with branch coverage (1.5 times as long); fails below 90 %
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

installed: env ## Build the wheel, install it in a fresh environment, and segment a phantom from an empty folder
	@$(PY) -m tools.installed

pictures: demo ## Draw docs/images from the demo's phantoms (needs chromium and chromedriver)
	$(PY) -m tools.pictures --demo "$(DEMO)"

release: env ## Write wheel, bundle zips and docs of this version to dist; try wheel and bundles in empty environments
	rm -rf dist
	$(PY) -m tools.installed --out dist
	@$(MAKE) --no-print-directory docs
	tar -czf dist/docs.tar.gz -C build site
	cd dist && sha256sum * > SHA256SUMS

torture: env ## Stress tests: kill processes, fill disks, damage and mutate files; COUNT=20 sets how often
	OMP_NUM_THREADS=1 $(PY) -W ignore -m stress --count $(COUNT)

audit: ## Look for known vulnerabilities of the pinned versions (needs the internet)
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --require-hashes --disable-pip

lint: env ## Check code with ruff and mypy --strict, and that the bundle configs are up to date
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) -W ignore -m tools.bundles --check

format: env ## Format the code and sort its imports with ruff
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: env ## Check the wording of the docs, and build the docs site in build/site
	$(PY) -m tools.prose
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

bundles: env ## Write the configs of each bundle from bundles/template and its network.yaml, and copy pipeline/scripts
	$(PY) -W ignore -m tools.bundles

claims: env ## Write the tables of README and bundle docs from the files in docs/results
	$(PY) -m tools.results --write

verify-claims: env ## Score the published weights on LGG_ROOT again; fails if a DSC differs by more than 0.002
	$(PY) -m tools.results --verify "$(LGG_ROOT)"

manifest: env ## Build data_manifest from the slices in LGG_ROOT=data/kaggle_3m, with the published validation patients
	$(PY) -m pipeline.manifest "$(LGG_ROOT)" --split reference

train: env ## Train BUNDLE=basic_unet with RECIPE=cpu on data_manifest (16 minutes or more on 2 CPU cores; can be resumed)
	$(PY) -W ignore -m pipeline.train --bundle $(BUNDLE) --recipe $(RECIPE) --resume

crossval: env ## Train BUNDLE=basic_unet on FOLDS=5 folds with SHORT_RECIPE=cpu_quarter, and score them (can be resumed)
	$(PY) -m pipeline.manifest "$(LGG_ROOT)" --split reference --folds $(FOLDS) --out data_folds
	$(PY) -m pipeline.train --bundle $(BUNDLE) --manifest data_folds --fold all --recipe $(SHORT_RECIPE) --resume \
	  --out runs/crossval_$(BUNDLE)_$(SHORT_RECIPE)
	for protocol in native reference; do \
	  $(PY) -m pipeline.evaluate --manifest data_folds --bundle bundles/$(BUNDLE) --folds runs/crossval_$(BUNDLE)_$(SHORT_RECIPE) \
	    --protocol $$protocol --out runs/crossval_$(BUNDLE)_$(SHORT_RECIPE)_$$protocol || exit 1; \
	done

# The trainings of the table in docs/results/accuracy.md, one a line: name, bundle, changed options.
define CASES
baseline basic_unet --experiment dice --experiment adam_constant
dice basic_unet --experiment dice
soft_iou basic_unet --experiment soft_iou
bce_dice basic_unet --experiment bce_dice
dice_ce basic_unet
attention attention_unet
unet_plusplus basic_unet_plusplus
resnet34 basic_unet --experiment resnet34
efficientnet_lite basic_unet --experiment efficientnet_lite
endef
export CASES

case-report: manifest ## Train nine variants with SHORT_RECIPE=cpu_quarter and score them, as in docs/results (can be resumed)
	@echo "$$CASES" | while read -r name bundle changes; do \
	  run=runs/case_report_$(SHORT_RECIPE)/$$name; \
	  $(PY) -W ignore -m pipeline.train --bundle $$bundle --recipe $(SHORT_RECIPE) $$changes --resume --out $$run < /dev/null \
	    || exit 1; \
	  for protocol in native reference; do \
	    $(PY) -m pipeline.evaluate --manifest data_manifest --bundle bundles/$$bundle --weights $$run/model.pt \
	      --protocol $$protocol --out $${run}_$$protocol < /dev/null || exit 1; \
	  done; \
	done

evaluate: env ## Score basic_unet on the validation patients of data_manifest
	$(PY) -m pipeline.evaluate --manifest data_manifest --bundle bundles/basic_unet --split validation --out runs/basic_unet

clean: ## Remove the demo and the caches; keep data, manifests, weights and the environment
	rm -rf "$(DEMO)" build $(VENV)-audit .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
