# `make run` runs the proxy, `make check` and `make test` test it. Each does its own set-up on a Debian
# machine that has Rust (rustup, see README.md): what is missing is installed by tests/e2e/setup.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# rustup's place, for shells that have not read its profile; Debian's sbin, for those without root.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin

SETUP := tests/e2e/setup
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
ARCH := $(shell uname -m)
MUSL := $(ARCH)-unknown-linux-musl
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The rings of `make check`, with which `make test` begins.
CHECK := fmt clippy unit integration

.PHONY: help
help: ## this text
	@sed -n 's/^\([a-z0-9]*\):.*## /make \1\t/p' Makefile | expand -t 16

.PHONY: run
run: ## build and run the proxy on port 8080 (LISTEN_PORT); without AWS settings with a stand-in
	@$(SETUP) rust build
	# A region or a CA bundle alone says nothing about a registry, nor about who asks.
	aws=
	for name in ECR UPSTREAM AWS_ACCESS_KEY_ID AWS_PROFILE AWS_ROLE_ARN \
		AWS_WEB_IDENTITY_TOKEN_FILE AWS_SHARED_CREDENTIALS_FILE AWS_CONFIG_FILE \
		AWS_CONTAINER_CREDENTIALS_RELATIVE_URI AWS_CONTAINER_CREDENTIALS_FULL_URI; do
		if [ -n "$${!name:-}" ]; then aws="$$aws $$name"; fi
	done
	if [ -n "$$aws" ]; then
		cargo build --release --locked --bin aws-ecr-proxy
		echo "make run: AWS settings found:$$aws"
		exec $(TARGET)/release/aws-ecr-proxy
	fi
	# Nobody's registry waits behind this one: the tests' build is there sooner than a release.
	cargo build --workspace --locked --bin aws-ecr-proxy --example standin
	# Nothing of a half-filled environment may reach the stand-in's proxy.
	unset $${!AWS_@} HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy
	state=$$(mktemp -d)
	standin= proxy=
	end() {
		trap - EXIT INT TERM HUP
		for pid in $$proxy $$standin; do kill -TERM "$$pid" 2>/dev/null || true; done
		wait 2>/dev/null || true
		rm -rf "$$state"
	}
	stop() { if [ -n "$$proxy" ]; then kill -TERM "$$proxy" 2>/dev/null || true; else exit 130; fi; }
	trap end EXIT
	trap stop INT TERM HUP
	$(TARGET)/debug/examples/standin --out "$$state/settings" >"$$state/out" &
	standin=$$!
	for _ in {1..100}; do
		[ ! -s "$$state/settings" ] || break
		kill -0 "$$standin" 2>/dev/null || break
		sleep 0.1
	done
	if [ ! -s "$$state/settings" ]; then
		echo "make run: the stand-in registry did not start" >&2
		cat "$$state/out" >&2
		exit 1
	fi
	while IFS='=' read -r name value; do
		case $$name in ECR | AWS_* | BLOB_HOSTS) export "$$name=$$value" ;; esac
	done <"$$state/settings"
	port=$${LISTEN_PORT:-$${PORT:-8080}}
	echo "make run: no AWS settings in the environment, so a stand-in registry runs beside the proxy"
	echo "make run: it is at $$ECR and holds sample/hello:1.0, in memory; try"
	echo "    curl localhost:$$port/v2/_catalog"
	echo "    skopeo inspect --tls-verify=false docker://localhost:$$port/sample/hello:1.0"
	echo "make run: for a real registry set ECR, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
	# A demonstration is for this machine alone; its cache goes when it ends.
	export LISTEN_HOST=$${LISTEN_HOST:-127.0.0.1} CACHE_DIR=$${CACHE_DIR:-$$state/cache}
	mkdir -p "$$CACHE_DIR"
	$(TARGET)/debug/aws-ecr-proxy &
	proxy=$$!
	tell() {
		url=http://localhost:$$port
		for _ in {1..100}; do
			! curl -sf -o "$$state/ready" "$$url/readyz" || break
			kill -0 "$$proxy" 2>/dev/null || return 0
			sleep 0.1
		done
		for time in first second; do
			found=$$(curl -s -D - -o "$$state/pulled" "$$url/v2/sample/hello/manifests/1.0" |
				sed -n 's/^X-Cache: \([A-Z]*\).*/\1/p')
			echo "make run: the $$time pull of sample/hello:1.0 is a $$found"
		done
		echo "make run: the status page is at $$url/"
	}
	if [ "$$port" != 0 ] && command -v curl >/dev/null; then tell & fi
	# A signal ends the first wait early; the proxy's own exit code is what counts.
	code=0
	while :; do
		code=0
		wait "$$proxy" || code=$$?
		kill -0 "$$proxy" 2>/dev/null || break
	done
	wait "$$proxy" 2>/dev/null || code=$$?
	exit $$code

.PHONY: check
check: ## formatting, clippy, unit and integration tests; needs Rust alone (2 to 4 min)
	@$(SETUP) rust lint
	tests/rings $(CHECK)

.PHONY: test
test: ## every test: check's, end to end, fuzz; installs what they need (13 to 20 min from a fresh clone)
	@$(SETUP) rust build lint static image test fuzz
	tests/rings $(CHECK) doc image e2e fuzz

.PHONY: e2e
e2e: ## the end-to-end checks alone (4 to 6 min); ONLY="tls 300" picks some by name
	@$(SETUP) rust build static image test
	$(MAKE) image
	tests/e2e/run $(ONLY)

.PHONY: replay
replay: ## the fuzz stage of `make test`: the seeds, and inputs of a fixed SEED (1 to 3 min); ONLY="range"
	@$(SETUP) rust build fuzz
	fuzz/run $(ONLY)

.PHONY: fuzz
fuzz: ## free fuzzing, other inputs each time, FUZZ_MINUTES (1) for each parser; ONLY="range dns"
	@$(SETUP) rust build fuzz
	fuzz/run --free $(ONLY)

.PHONY: measure
measure: ## memory, /healthz under load, 16 clients of one blob: medians of 5, with their bounds
	@$(SETUP) rust build static test
	$(MAKE) static
	tests/e2e/measure.py

.PHONY: bench
bench: ## beside nginx and distribution's registry, as ratios, in docs/performance.md (15 min); ROUNDS=1 WORK="cold"
	@$(SETUP) rust build static test
	[ -n "$${PROXY_BIN:-}" ] || $(MAKE) static
	benches/bench.py

.PHONY: simulate
simulate: ## 1,000 nodes pull 1 GB through two tiers: upstream bytes, the slowest node; ARGS="--replicas 1"
	@python3 benches/simulate.py $(ARGS)

.PHONY: soak
soak: ## kill -9 during downloads, 50 times (KILLS), and what is in the cache afterwards
	@$(SETUP) rust build static test
	$(MAKE) static
	tests/e2e/soak.py

.PHONY: power-cuts
power-cuts: ## power cuts at random moments, 200 times (CUTS, SEED), and what the cache is afterwards
	@$(SETUP) rust build static test
	$(MAKE) static
	tests/e2e/power_cut.py

.PHONY: load
load: ## slow readers, slowhttptest, 100,000 mixed requests (REQUESTS, SEED); TLS=1 for a door with TLS
	@$(SETUP) rust build static test
	$(MAKE) static
	tests/e2e/load.py $(if $(TLS),--tls) $(ONLY)

.PHONY: static
static: ## a stripped static binary in dist/
	@$(SETUP) rust build static
	mkdir -p dist
	if [ -n "$$(ls "$$(rustc --print target-libdir --target $(MUSL) 2>/dev/null)" 2>/dev/null)" ] ||
		{ command -v rustup >/dev/null && rustup target add $(MUSL); }; then
		target=$(MUSL)
		# ring has C in it, which musl's own compiler must see.
		export CC_$(subst -,_,$(MUSL))=musl-gcc
	else
		echo "make static: the target $(MUSL) cannot be added, so this is a static glibc build"
		target=$(ARCH)-unknown-linux-gnu
		export RUSTFLAGS="$${RUSTFLAGS:-} -C target-feature=+crt-static"
	fi
	# The same commit gives the same bytes, wherever it is built.
	eval "$$(packaging/environment)"
	cargo build --release --locked --bin aws-ecr-proxy --target "$$target"
	install -m 755 "$(TARGET)/$$target/release/aws-ecr-proxy" dist/aws-ecr-proxy
	kind=$$(file -b dist/aws-ecr-proxy)
	case $$kind in
		*static*) ;;
		*) echo "make static: dist/aws-ecr-proxy is not static: $$kind" >&2; exit 1 ;;
	esac
	case $$kind in
		*"not stripped"*) echo "make static: dist/aws-ecr-proxy is not stripped" >&2; exit 1 ;;
	esac
	# ldd ends with 1 for a plain static binary and with 0 for a static position-independent one.
	linked=$$(ldd dist/aws-ecr-proxy 2>&1 || true)
	case $$linked in
		*"=>"*) echo "make static: dist/aws-ecr-proxy needs libraries: $$linked" >&2; exit 1 ;;
	esac
	echo "dist/aws-ecr-proxy: $$(stat -c %s dist/aws-ecr-proxy) bytes, static, for $$target"

.PHONY: deny
deny: ## licences, sources, duplicates and bans of the crates (deny.toml); advisories where there is a database
	@$(SETUP) rust deny
	deny="tests/.deny/bin/cargo-deny --offline --exclude-dev"
	cargo fetch --locked
	$$deny check licenses bans sources
	# The database is a git repository on GitHub: fetched by hand, so that CI needs no further network.
	if [ -n "$$(ls "$${CARGO_HOME:-$$HOME/.cargo}/advisory-dbs" 2>/dev/null)" ]; then
		$$deny check advisories
	else
		echo "make deny: advisories not checked, there is no database: run 'tests/.deny/bin/cargo-deny fetch db' where GitHub can be reached"
	fi

.PHONY: package
package: static ## tarball, .deb, .rpm, SBOM and image for x86_64 and aarch64, in dist/packages (2 release builds)
	@$(SETUP) rust build static package
	packaging/all

.PHONY: packages
packages: package ## the packages tested: lintian, a clean chroot, rpm, qemu, the SBOM's schema (3 min)
	packaging/test

.PHONY: reproducible
reproducible: ## two builds of one commit in two folders give the same bytes (2 release builds)
	@$(SETUP) rust build static
	packaging/reproducible

.PHONY: image
image: static ## the container image from dist/, without a network, as a docker-archive in dist/
	@$(SETUP) image
	# The Containerfile's last stage as it stands, with a folder in the place of its first stage.
	rm -rf dist/stage
	mkdir -p dist/stage/out/cache dist/stage/etc/ssl/certs
	install -m 755 dist/aws-ecr-proxy dist/stage/out/aws-ecr-proxy
	# Debian's own roots, not this machine's bundle, which may hold a company's.
	cat /usr/share/ca-certificates/mozilla/*.crt >dist/stage/etc/ssl/certs/ca-certificates.crt
	chmod 644 dist/stage/etc/ssl/certs/ca-certificates.crt
	# A storage of its own: nothing on this machine is touched. vfs works on every file system.
	store=$$(mktemp -d)
	trap 'buildah unshare rm -rf "$$store" 2>/dev/null || rm -rf "$$store"' EXIT
	mkdir "$$store/root" "$$store/run" "$$store/tmp"
	buildah="buildah --root $$store/root --runroot $$store/run --storage-driver vfs"
	export TMPDIR="$$store/tmp" BUILDAH_ISOLATION=chroot
	# OCI's own image format has no HEALTHCHECK: --format docker keeps it. The time is that of the
	# commit, so that the same source gives the same image.
	$$buildah build --quiet --format docker --pull-never \
		--timestamp "$$(git log -1 --format=%ct 2>/dev/null || echo 0)" \
		--build-context build="$$PWD/dist/stage" \
		--tag aws-ecr-proxy:$(VERSION) --file Containerfile dist/stage >/dev/null
	rm -f dist/aws-ecr-proxy-image.tar
	$$buildah push --quiet aws-ecr-proxy:$(VERSION) \
		docker-archive:dist/aws-ecr-proxy-image.tar:aws-ecr-proxy:$(VERSION)
	rm -rf dist/stage
	echo "dist/aws-ecr-proxy-image.tar: $$(stat -c %s dist/aws-ecr-proxy-image.tar) bytes, aws-ecr-proxy:$(VERSION); load it by"
	echo "    docker load -i dist/aws-ecr-proxy-image.tar"
	echo "    podman load -i dist/aws-ecr-proxy-image.tar"

.PHONY: lint
lint: ## formatting, and clippy with warnings denied
	@$(SETUP) rust build lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: clean
clean: ## removes everything that was built
	cargo clean
	rm -rf dist tests/.venv tests/.deny tests/.tools
