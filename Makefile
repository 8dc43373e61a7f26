# Zeblit. `make help` lists what there is.

CARGO ?= cargo
ARGS ?=
SETUP_ENV = set -a; . target/setup.env; set +a

.PHONY: help demo test lint unit build install image prove-hostile prove-canary clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: ## a bug report becomes a pull request, on this machine, without any account (ARGS=--once ends by itself)
	@deploy/setup.sh demo
	@$(CARGO) build --bin zeblit
	@target/debug/zeblit demo $(ARGS)

test: ## formatting, lints and every test; installs and starts what they need
	@deploy/setup.sh test
	@$(MAKE) --no-print-directory lint mutants unit

lint: ## formatting and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

unit: ## every test, after `deploy/setup.sh test`
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  $(SETUP_ENV); CI=$${CI:-true} INSTA_UPDATE=no $(CARGO) nextest run --no-fail-fast; \
	else \
	  $(SETUP_ENV); CI=$${CI:-true} INSTA_UPDATE=no $(CARGO) test --no-fail-fast; \
	fi

build: ## the release binary, target/release/zeblit
	$(CARGO) build --release --bin zeblit

install: build ## install to $(PREFIX)/bin (default /usr/local)
	install --strip -m 0755 target/release/zeblit $(or $(PREFIX),/usr/local)/bin/zeblit

image: ## the agent image, from a registry or from this machine's own packages
	deploy/agent/build-image.sh

.PHONY: prove-budget

prove-budget: ## 64 model requests at once against a budget for one, on both databases
	@deploy/setup.sh test
	@rm -rf target/prove/budget && mkdir -p target/prove/budget
	@$(SETUP_ENV); $(CARGO) test --quiet --test it budget:: >target/prove/budget/log 2>&1 || { cat target/prove/budget/log; exit 1; }
	@echo "prove-budget: $$(cat target/prove/budget/requests); $$(cat target/prove/budget/partial)"

.PHONY: bench
bench: ## Zeblit and its peers in turns, and whether each goal holds (ONLY=G1,G14 ROUNDS=3)
	@deploy/setup.sh bench
	@$(SETUP_ENV); $(CARGO) bench --quiet --bench goals -- $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS))

.PHONY: bench-seed-figures
bench-seed-figures: ## REST, deliveries, queued tasks, live readers, repositories and runs a day that one server holds
	@$(MAKE) --no-print-directory bench ONLY=S1,S2,S3,S4,S5,S6 ROUNDS=$(or $(ROUNDS),1)

# ---- proofs of the sandbox

PROVE = target/prove
PROVE_RUN = $(SETUP_ENV); ZEBLIT_PROVE_FOLDER=$(CURDIR)/$(PROVE)/$@ $(CARGO) test --quiet --test it

prove-hostile: ## a scripted hostile agent in real containers: nothing that it tries succeeds (needs Docker)
	@deploy/setup.sh test
	@rm -rf $(PROVE)/$@
	@$(PROVE_RUN) hostile:: > $(PROVE)-hostile.log 2>&1; echo $$? > $(PROVE)-hostile.code
	@cat $(PROVE)/$@/*.tsv | awk -F'\t' '{ printf "%-9s  %-10s  %-44.44s  %-40.40s  %s\n", $$1, $$2, $$3, $$4, $$5 }'
	@if [ "$$(cat $(PROVE)-hostile.code)" != 0 ]; then tail -n 60 $(PROVE)-hostile.log; fi
	@cat $(PROVE)/$@/*.tsv | awk -F'\t' '$$1 == "SUCCEEDED" { got++ } END { \
	  printf "prove-hostile: %d probes, %d succeeded\n", NR, got; exit (NR < 150 || got > 0) }'
	@exit "$$(cat $(PROVE)-hostile.code)"

prove-canary: ## secrets of a server are found nowhere that an agent can reach or write, and leave by no sink (needs Docker)
	@deploy/setup.sh test
	@rm -rf $(PROVE)/$@
	@$(PROVE_RUN) canary:: > $(PROVE)-canary.log 2>&1 || { tail -n 60 $(PROVE)-canary.log; exit 1; }
	@$(PROVE_RUN) sinks:: > $(PROVE)-canary.log 2>&1 || { tail -n 60 $(PROVE)-canary.log; exit 1; }
	@sed '$$d' $(PROVE)/$@/sinks.txt
	@sed '$$d' $(PROVE)/$@/canary.txt
	@echo "prove-canary: $$(tail -n 1 $(PROVE)/$@/sinks.txt); in a real run: $$(tail -n 1 $(PROVE)/$@/canary.txt | sed 's/^prove-canary: //')"

.PHONY: prove-agents prove-trigger-files

prove-agents: ## Claude Code, Codex, opencode, Gemini CLI and our own agent each fix a bug in a container; the ledger is exact (needs Docker)
	@deploy/setup.sh test
	@rm -rf $(PROVE)/$@
	@mkdir -p $(PROVE)/$@
	@$(PROVE_RUN) agents:: -- --test-threads 2 > $(PROVE)-agents.log 2>&1; echo $$? > $(PROVE)-agents.code
	@if [ "$$(cat $(PROVE)-agents.code)" != 0 ]; then tail -n 60 $(PROVE)-agents.log; fi
	@find $(PROVE)/$@ -name '*.tsv' -exec cat {} + | awk -F'\t' '$$2 == "fixed" { fixed++; tokens += $$3 } END { \
	  printf "prove-agents: %d of 5 agents fixed the bug; ledger and model server agree on %d tokens\n", fixed, tokens; exit (fixed != 5) }'
	@exit "$$(cat $(PROVE)-agents.code)"

prove-trigger-files: ## files that agents run or obey, planted in the head of a pull request: none fires in any of the four CLIs (needs Docker)
	@deploy/setup.sh test
	@rm -rf $(PROVE)/$@
	@mkdir -p $(PROVE)/$@
	@$(PROVE_RUN) triggers:: -- --test-threads 2 > $(PROVE)-trigger-files.log 2>&1; echo $$? > $(PROVE)-trigger-files.code
	@if [ "$$(cat $(PROVE)-trigger-files.code)" != 0 ]; then tail -n 60 $(PROVE)-trigger-files.log; fi
	@find $(PROVE)/$@ -name '*.tsv' -exec cat {} + | awk -F'\t' '$$1 == "masked" { agents++; files = $$3; fired += $$4 } \
	  $$1 == "plain" && !seen[$$3]++ { plain++ } END { \
	  printf "prove-trigger-files: %d files x %d agents, %d fired (%d fire without the mask)\n", files, agents, fired, plain; \
	  exit (agents != 4 || files < 40 || fired > 0 || plain < 20) }'
	@exit "$$(cat $(PROVE)-trigger-files.code)"

.PHONY: prove-fsync
prove-fsync: ## every accepted delivery is on the disk before its answer, by its system calls (SECONDS=10)
	@deploy/setup.sh test
	@rm -rf $(PROVE)/$@
	@ZEBLIT_PROVE_SECONDS=$(or $(SECONDS),10) $(SHELL) -c '$(PROVE_RUN) fsync::' > $(PROVE)-fsync.log 2>&1 || { tail -n 60 $(PROVE)-fsync.log; exit 1; }
	@printf 'prove-fsync: '; cat $(PROVE)/$@/fsync.txt

.PHONY: prove-crash prove-faults

prove-crash: ## the process dies before, during and after the sending of every kind of effect: each comes exactly once, on both databases
	@deploy/setup.sh test
	@rm -rf $(PROVE)/$@
	@mkdir -p $(PROVE)/$@
	@$(PROVE_RUN) -- matrix::each_kind crash:: postgres:: > $(PROVE)-crash.log 2>&1; echo $$? > $(PROVE)-crash.code
	@cat $(PROVE)/$@/*.tsv | awk -F'\t' '{ printf "%-6s  %-9s  %-15s  %-12s  %s  %s\n", $$1, $$2, $$3, $$4, $$5, $$6 }'
	@if [ "$$(cat $(PROVE)-crash.code)" != 0 ]; then tail -n 60 $(PROVE)-crash.log; fi
	@cat $(PROVE)/$@/*.tsv | awk -F'\t' -v passed="$$(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' $(PROVE)-crash.log)" \
	  '!($$2 in d) { d[$$2]; ds++ } !($$3 in k) { k[$$3]; ks++ } !($$4 in s) { s[$$4]; ss++ } $$1 == "once" { once++ } END { \
	  printf "prove-crash: %d kinds x %d stops x %d databases: %d of %d exactly once; %d whole-job tests\n", ks, ss, ds, once, ks * ss * ds, passed - ss * ds; \
	  exit (ks < 31 || ss != 3 || ds != 2 || once != ks * ss * ds) }'
	@exit "$$(cat $(PROVE)-crash.code)"

prove-faults: ## effects of all kinds at a forge that breaks half of the time: none is doubled, all converge (EFFECTS=1000)
	@deploy/setup.sh test
	@rm -rf $(PROVE)/$@
	@ZEBLIT_PROVE_EFFECTS=$(or $(EFFECTS),1000) $(SHELL) -c '$(PROVE_RUN) -- matrix::effects_of_all_kinds effects::' > $(PROVE)-faults.log 2>&1; echo $$? > $(PROVE)-faults.code
	@if [ "$$(cat $(PROVE)-faults.code)" != 0 ]; then tail -n 60 $(PROVE)-faults.log; fi
	@printf 'prove-faults: '; cat $(PROVE)/$@/faults.txt
	@exit "$$(cat $(PROVE)-faults.code)"

.PHONY: prove-kill
prove-kill: ## the server is killed with SIGKILL again and again under load: nothing is lost or doubled (KILLS=100, DATABASE=sqlite|postgres)
	@deploy/setup.sh test
	@rm -rf $(PROVE)/$@
	@ZEBLIT_PROVE_KILLS=$(or $(KILLS),100) ZEBLIT_PROVE_DATABASE=$(DATABASE) $(SHELL) -c '$(PROVE_RUN) again_and_again' > $(PROVE)-kill.log 2>&1 || { tail -n 80 $(PROVE)-kill.log; exit 1; }
	@cat $(PROVE)/$@/*.tsv | awk -F'\t' '{ kills += $$1; accepted += $$2; lost += $$3; doubled += $$4; runs += $$6; poison += $$7; if ($$5 > longest) longest = $$5 } END { \
	  printf "prove-kill: %d kills, %d deliveries accepted, %d runs (%d given up as poison), %d lost, %d doubled, converged in %d s\n", kills, accepted, runs, poison, lost, doubled, longest; \
	  exit (NR < 2 || lost > 0 || doubled > 0 || longest > 120) }'

.PHONY: prove-mutants mutants
prove-mutants: ## deliberate breakages of this program, each must turn a test red (ARGS="--only NAME", "--list")
	@deploy/setup.sh test
	@$(MAKE) --no-print-directory mutants

mutants:
	@mkdir -p $(PROVE)
	@$(SETUP_ENV); CI=$${CI:-true} $(CARGO) test --quiet --test mutants -- $(ARGS) > $(PROVE)-mutants.log 2> $(PROVE)-mutants.build.log; code=$$?; \
	  if [ $$code != 0 ]; then tail -n 60 $(PROVE)-mutants.build.log; fi; cat $(PROVE)-mutants.log; exit $$code

.PHONY: prove-nodes
prove-nodes: ## five nodes under kills, pauses and Redis cuts end every run once (RUNS=200)
	@deploy/setup.sh test
	@rm -rf $(PROVE)/$@
	@ZEBLIT_PROVE_RUNS=$(or $(RUNS),200) $(SHELL) -c '$(PROVE_RUN) five_nodes' > $(PROVE)-nodes.log 2>&1 || { tail -n 60 $(PROVE)-nodes.log; exit 1; }
	@cat $(PROVE)/$@/nodes.txt

clean: ## remove build output and the demo's state
	$(CARGO) clean
	@findmnt --raw --noheadings --output TARGET | grep "^$(CURDIR)/.demo/" | sort --reverse | xargs --no-run-if-empty umount --lazy
	rm -rf .demo

.PHONY: fuzz
fuzz: ## every parser against mutated input, SECONDS in all (SECONDS=60)
	@mkdir -p target; rm -f target/fuzz.txt
	@FUZZ_SECONDS=$(or $(SECONDS),60) FUZZ_REPORT=$(CURDIR)/target/fuzz.txt $(CARGO) test --quiet --test fuzz no_input || { cat target/fuzz.txt; exit 1; }
	@cat target/fuzz.txt

.PHONY: fuzz-long
fuzz-long: ## fuzzing by coverage: each target or one, for hours (TARGET=all HOURS=24)
	@tests/fuzz/libfuzzer/run.sh "$(or $(TARGET),all)" "$$(awk 'BEGIN { print int($(or $(HOURS),24) * 3600) }')"

.PHONY: bench-growth
bench-growth: ## what ten times the runs, the queue, the repositories and followers cost (ROUNDS=3)
	@$(MAKE) --no-print-directory bench ONLY=growth
