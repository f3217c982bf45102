# Everything is installed into .venv and nowhere else.
PYTHON ?= python3
BIN := .venv/bin
DATA := .data
ARGS ?=
# How many files `make test` tests at a time.
JOBS ?= 2
SBIN := :/usr/sbin

# A file that a failed line left behind would pass for a made one.
.DELETE_ON_ERROR:

.PHONY: setup serve test test-servers test-triton test-clients lint audit format docs
.PHONY: bench bench-gateway bench-peers bench-triton soak train clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Penstock needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

# A development key, made once and readable by its owner alone; PENSTOCK_API_KEY takes its place.
$(DATA)/dev-key: | setup
	@mkdir -p -m 700 $(DATA)
	@umask 077 && $(BIN)/python -c 'from server.keys import generate; print(generate().text)' > $@.new && mv $@.new $@

serve: setup $(DATA)/dev-key
	@PENSTOCK_API_KEY="$${PENSTOCK_API_KEY:-$$(cat $(DATA)/dev-key)}" \
		exec $(BIN)/penstock serve --data-dir $(DATA) --show-key $(ARGS)

test: setup test-servers
	@$(MAKE) --no-print-directory .triton/.installed || echo "No Triton server here: its tests are skipped."
	@$(MAKE) --no-print-directory .clients/.installed || echo "No clients of others here: their tests are skipped."
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# Servers that tests start for themselves, on ports of their own. Root gets what is missing from Debian's or Ubuntu's
# packages; elsewhere the tests that need it are skipped, and say so.
test-servers:
	@missing=$$(PATH="$$PATH$(SBIN)"; for package in redis-server nginx-light postgresql; do \
		case $$package in \
			postgresql) command -v initdb || ls /usr/lib/postgresql/*/bin/initdb ;; \
			nginx-light) command -v nginx ;; \
			*) command -v $$package ;; \
		esac >/dev/null 2>&1 || printf ' %s' $$package; done); \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
			apt-get install -y -qq --no-install-recommends $$missing; } >/dev/null 2>&1 && missing=; \
	fi; \
	[ -z "$$missing" ] || echo "Some tests will be skipped. To run them: apt-get install$$missing"

# A real Triton for the tests of its engine, in an environment of its own, that nothing else uses.
TRITON := nvidia-pytriton==0.7.0
.triton/.installed: | setup
	$(BIN)/python -m venv .triton
	.triton/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps $(TRITON) 'numpy<2'
	@touch $@

test-triton: setup .triton/.installed
	$(BIN)/python -m pytest -m triton $(ARGS)

# Other people's clients, in an environment of their own, since their dependencies are not ours. About a minute, once.
DROP_IN := tests/drop_in
.clients/.installed: $(DROP_IN)/requirements.txt $(DROP_IN)/package.json | setup
	$(BIN)/python -m venv .clients
	.clients/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps -r $(DROP_IN)/requirements.txt
	@cp $(DROP_IN)/package.json .clients && cd .clients && { ! command -v npm >/dev/null || \
		npm install --silent --no-audit --no-fund --no-package-lock --fetch-retries 1; } || \
		echo "The clients in JavaScript can't be installed: their tests are skipped."
	@touch $@

test-clients: setup .clients/.installed
	$(BIN)/python -m pytest $(DROP_IN) $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive server batching engines quota

# Known vulnerabilities in what constraints.txt pins. Asks the package index: without a network nothing can be said.
AUDIT := pip-audit==2.10.1
.audit/.installed: | setup
	$(BIN)/python -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 $(AUDIT)
	@touch $@

audit: setup
	@{ $(MAKE) --no-print-directory .audit/.installed && \
		.audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt; } || \
		{ echo "Not all of constraints.txt is known to be safe: see above. Without a network none of it can be."; exit 1; }

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What becomes of every field of every request, from the code.
docs: setup
	$(BIN)/python -m docs.compatibility

# The bundled model under a chat-like load, on a server of its own.
bench: setup
	$(BIN)/python -m loadtest.local $(ARGS)

# The same weights and requests through llama.cpp and transformers, in environments of their own: minutes to build them,
# once. llama.cpp is compiled for this machine; --no-cache-dir, lest a wheel built without the header is found.
.peers/llama/.installed: loadtest/peers/amx_tiles.h | setup
	$(BIN)/python -m venv .peers/llama
	CMAKE_ARGS="-DCMAKE_C_FLAGS=-include$(CURDIR)/$< -DCMAKE_CXX_FLAGS=-include$(CURDIR)/$<" \
		.peers/llama/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --force-reinstall \
		'llama-cpp-python[server]==0.3.36' 'gguf==0.19.0'
	@touch $@

# It sees Penstock's packages, so that both run on the same torch and transformers.
.peers/transformers/.installed: pyproject.toml | setup
	$(BIN)/python -m venv .peers/transformers
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > .peers/penstock.pth
	mv .peers/penstock.pth "$$(.peers/transformers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	.peers/transformers/bin/python -m pip install --quiet --disable-pip-version-check 'transformers[serving]'
	@touch $@

bench-peers: setup .peers/llama/.installed .peers/transformers/.installed
	$(BIN)/python -m loadtest.peers.bench $(ARGS)

# What the gateway costs by itself, against the fake engine; LiteLLM's proxy under the same load, in an environment of its
# own. About five minutes, on cores that nothing else uses.
LITELLM := litellm[proxy]==1.106.2
.peers/litellm/.installed: | setup
	$(BIN)/python -m venv .peers/litellm
	.peers/litellm/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 '$(LITELLM)'
	@touch $@

bench-gateway: setup
	@$(MAKE) --no-print-directory .peers/litellm/.installed || echo "No LiteLLM here: measured without it."
	$(BIN)/python -m loadtest.gateway --litellm .peers/litellm/bin/litellm $(ARGS)

# What grouping by length does for a model that Triton batches, on the real Triton of the tests.
bench-triton: setup .triton/.installed
	$(BIN)/python -m tests.triton_grouping $(ARGS)

# The property tests and the faults at full length, and what they measured as a table (docs/reliability.md). Twenty minutes
# of it are test_soak.py, which goes on for hours with PENSTOCK_SOAK_SECONDS=7200.
GRAMMARS := tests/engines/test_grammars.py tests/server/text/test_formats.py
SCALED = $(shell grep -rl --include='test_*.py' '^from tests.scale import' tests)
soak: setup
	@mkdir -p -m 700 $(DATA) && rm -f $(DATA)/figures.jsonl
	HYPOTHESIS_PROFILE=soak PENSTOCK_SOAK=1 PENSTOCK_FIGURES=$(DATA)/figures.jsonl \
		$(BIN)/python -m pytest --timeout 7200 tests/quota tests/batching $(SCALED) $(GRAMMARS) $(ARGS)
	@$(BIN)/python -m tests.faults.ledger.table $(DATA)/figures.jsonl

# Trains models/tiny-chat anew; CORPORA is a folder with the corpora that its model card names.
train: setup
	$(BIN)/python models/train_tiny_chat.py $(if $(CORPORA),--corpora $(CORPORA)) $(ARGS)

clean:
	rm -rf .venv .triton .clients .audit .peers .pytest_cache .mypy_cache .ruff_cache .hypothesis
