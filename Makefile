# Tatami: every task a person or CI needs, each one command that does its own set-up.
# `make help` lists them. Things that take long to build (guest kernel, test host) are cached outside the checkout,
# in $TATAMI_CACHE (default ~/.cache/tatami), keyed by a hash of their inputs.

ARCH   ?= x86_64
# Rust and GCC call one of them otherwise than the kernel does.
GNU    := $(ARCH:ppc64le=powerpc64le)
TRIPLE := $(GNU)-unknown-linux-gnu
# Not empty where what is built is for another architecture than this machine's.
FOREIGN := $(filter-out $(shell uname -m),$(ARCH))
GUEST  := target/guest/$(ARCH)
IMAGE  := $(if $(FOREIGN),target/sample-image-$(ARCH).tar,target/sample-image.tar)
PAUSE  := $(if $(FOREIGN),target/pause-image-$(ARCH).tar,target/pause-image.tar)
# Where binaries are: those of this machine's architecture have a place of their own, in which tests look for them.
BIN    := $(if $(FOREIGN),target/$(TRIPLE)/$(if $(QUICK),debug,release),target/release)
PREFIX ?= /usr/local
DESTDIR ?=

CARGO  ?= cargo
# Static against glibc: the host binary starts without a loader and runs on any distribution; the agent has no libraries.
CARGO_TARGET := CARGO_TARGET_$(shell echo $(TRIPLE) | tr 'a-z-' 'A-Z_')
CROSS  := $(if $(FOREIGN),$(CARGO_TARGET)_LINKER=$(GNU)-linux-gnu-gcc LIBSECCOMP_LIB_PATH=/usr/lib/$(GNU)-linux-gnu LIBCAPNG_LIB_PATH=/usr/lib/$(GNU)-linux-gnu)
STATIC := $(CARGO_TARGET)_RUSTFLAGS="-C target-feature=+crt-static" $(CROSS)
# Nor is there an index to unwind its stack by, which nobody does: a panic ends it.
GUEST_STATIC := $(CARGO_TARGET)_RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,--no-eh-frame-hdr" $(CROSS)
# What needs KVM runs where one is: here, or in the emulated test host (of the architecture that it is for); so do test binaries.
KVM    := $(if $(FOREIGN),TATAMI_TESTHOST_ARCH=$(ARCH)) tests/with-kvm
RUNNER := $(if $(FOREIGN),TATAMI_TESTHOST_ARCH=$(ARCH)) $(CROSS) $(CARGO_TARGET)_RUNNER="$(CURDIR)/tests/with-kvm"
# Test binaries for this machine are built where `cargo test` builds them.
TARGET := $(if $(FOREIGN),--target $(TRIPLE))
# Tests of the tree itself, of the emulator's PC, and a guest that is written for x86_64.
NATIVE := $(if $(FOREIGN),--exclude tatami-tests --exclude tatami-testhost --exclude tatami-hostile)

.DEFAULT_GOAL := help
.PHONY: help deps build kernel initrd root-disk distribution guest image standalone run manual docs test test-unit test-host test-kvm test-clients test-others one-container test-vtx test-all fuzz lint bench install uninstall clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

deps: ## install what the build needs (Debian, root); says what is missing otherwise
	@tests/install-deps $(ARCH)

# Side by side, for what links a binary in one piece has one thread. QUICK=1 (of another architecture): in less than half the time, to see that
# it runs, not how fast.
build: deps ## build the host binary and the agent, both static
ifneq ($(and $(FOREIGN),$(QUICK)),)
	CARGO_PROFILE_DEV_DEBUG=0 $(STATIC) $(CARGO) build --locked --target $(TRIPLE) -p tatami -p tatami-agent
else
	@tests/side-by-side tatami '$(STATIC) $(CARGO) build --release --locked --target $(TRIPLE) -p tatami' \
		agent '$(GUEST_STATIC) $(CARGO) build --profile guest --locked --target $(TRIPLE) -p tatami-agent'
	$(if $(FOREIGN),,@install -CD -m 755 target/$(TRIPLE)/release/tatami $(BIN)/tatami)
	@install -CD -m 755 target/$(TRIPLE)/guest/tatami-agent $(BIN)/tatami-agent
endif

kernel: deps ## build the guest kernel
	guest-kernel/build --arch $(ARCH)

initrd: build ## build the guest's initrd around the agent
	rootfs/build-initrd --arch $(ARCH) --agent $(BIN)/tatami-agent

root-disk: build ## build the guest's root as disks, which take the initrd's place: tatami run --initrd target/guest/ARCH/root.erofs
	rootfs/build-root --arch $(ARCH) --agent $(BIN)/tatami-agent
	rootfs/build-root --arch $(ARCH) --agent $(BIN)/tatami-agent --format ext4
	rootfs/build-root --arch $(ARCH) --agent $(BIN)/tatami-agent --dm-verity

SUITE  ?= bookworm
distribution: build ## the same over a Debian suite (root; SUITE=bookworm)
	rootfs/build-root --arch $(ARCH) --agent $(BIN)/tatami-agent --distro debian --suite $(SUITE)

guest: kernel initrd

image: deps ## build the sample OCI image, and one whose container only waits
	rootfs/build-sample-image --arch $(ARCH) --output $(IMAGE)
	rootfs/build-sample-image --arch $(ARCH) --output $(PAUSE) --name localhost/tatami-pause:latest --command "exec sleep 2147483647"

standalone: build guest ## one file that is the whole installation: target/release/tatami-standalone has kernel and initrd within
	TATAMI_EMBED=$(CURDIR)/$(GUEST) $(STATIC) $(CARGO) build --release --locked --target $(TRIPLE) -p tatami
	@install -CD -m 755 target/$(TRIPLE)/release/tatami target/release/tatami-standalone
	@ls -l target/release/tatami-standalone

run: build guest image ## build everything, then run the sample image in a micro-VM
	@$(KVM) $(BIN)/tatami run --rm \
		$(if $(FOREIGN),--boot-timeout 300 --kernel $(GUEST)/vmlinux --initrd $(GUEST)/initrd.img) $(IMAGE)

# The last ones side by side, in emulated hosts of their own where they need one: each has a single CPU, and one is left for who compiles beside it.
test: test-unit test-host build guest image root-disk ## every test there is (FULL=1: the long ones of test-clients too)
	@rm -f target/not-run
	@tests/side-by-side kvm "$(MAKE) --no-print-directory test-kvm" \
		clients "CARGO_BUILD_JOBS=1 TATAMI_TESTHOST_NAME=clients $(MAKE) --no-print-directory --keep-going test-clients test-vtx test-others"
	@[ ! -e target/not-run ] || cat target/not-run

# The architectures of which `make test` runs a container, beside all that it does of this machine's.
OTHERS ?= $(filter-out $(shell uname -m),aarch64 ppc64le)
test-others: ## a container to its exit status on each of OTHERS, in its emulated host
	@set -e; for arch in $(OTHERS); do \
		TATAMI_TESTHOST_NAME=others tests/while-time-lasts $$arch $(MAKE) --no-print-directory ARCH=$$arch QUICK=1 one-container; \
		TATAMI_TESTHOST_NAME=others TATAMI_TESTHOST_ARCH=$$arch tests/host/run --stop; \
	done

one-container: build guest image ## what test-others does, for ARCH alone (QUICK=1: with binaries that are not optimised)
	tests/one-container $(ARCH) $(BIN)

test-vtx: build guest image ## two containers on Intel's VT-x, as bochs emulates it
	tests/while-time-lasts "Intel's VT-x" tests/vt-x

test-all: test ## the same, and the tests that boot guests, on each of OTHERS too
	@set -e; for arch in $(OTHERS); do $(MAKE) --no-print-directory ARCH=$$arch test-unit test-kvm test-clients; done

test-unit: deps ## the tests that need no KVM
ifneq ($(FOREIGN),)
	@echo "$(ARCH): without the tests named device_tree and dtc_reads: its host lacks dtc, and here they read the trees of all architectures"
	$(RUNNER) $(CARGO) test --locked $(TARGET) --workspace $(NATIVE) --no-fail-fast -- --skip=device_tree --skip=dtc_reads
else
	$(CARGO) test --locked --workspace
	rootfs/test-reproducible
endif

test-host: deps ## the emulated test host's own tests
	tests/host/selftest

# As a workspace, whose features are those that `test-unit` has compiled all with.
test-kvm: build guest image root-disk $(if $(FOREIGN),,distribution) ## the tests that boot guests, here or in the emulated test host
	$(RUNNER) tests/run-kvm-tests $(TARGET) $(if $(FOREIGN),-p tatami -p tatami-devices -p tatami-vmm -p tatami-tests,--workspace --tests)
	$(RUNNER) $(CARGO) test --locked $(TARGET) $(if $(FOREIGN),-p tatami-agent,--workspace) --test containers

# The hosts of other architectures have one release of containerd, as they are made of unpacked packages, and neither Docker nor Podman.
CLIENTS := containerd pods $(if $(FOREIGN),,docker podman)
test-clients: build guest image root-disk ## containerd, Docker and CRI, with runc and with Tatami, compared (FULL=1: all cases on all releases)
	$(if $(FOREIGN),@echo "$(ARCH): neither Docker nor Podman and one release of containerd: its host has no more")
	TATAMI_CLIENTS=$(if $(FULL),full,$(TATAMI_CLIENTS)) $(if $(FOREIGN),TATAMI_CLIENTS_RELEASE=older) $(RUNNER) \
		$(CARGO) test --locked $(TARGET) --no-fail-fast -p tatami-tests --features clients $(CLIENTS:%=--test %)

fuzz: deps ## each fuzz target for FUZZ_SECONDS (60): executions, coverage, findings
	@fuzz/run

lint: deps ## format, clippy with warnings denied, the project's own rules
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --features tatami-tests/clients -- -D warnings
	$(CARGO) test --locked --quiet -p tatami-tests --test tidy --test licences

# Where the benchmark looks for the peers that are named: in an emulated host, the checkout is all there is.
PEERS  := target/bench/peers
bench: build guest image ## boot and devices against QEMU's microvm (FIRECRACKER=, CLOUD_HYPERVISOR= name further peers), `tatami run`, containerd and pods next to runc, fifty at once; of other architectures, boot
	$(CROSS) $(CARGO) build --release --locked $(TARGET) -p tatami-tests --features clients --bin bench
	$(STATIC) $(CARGO) build --release --locked --target $(TRIPLE) -p tatami-vmm --example boot
	$(GUEST_STATIC) $(CARGO) build --profile guest --locked --target $(TRIPLE) -p tatami-tests --bin bench-init
	$(if $(FOREIGN),,@install -D -m 755 target/$(TRIPLE)/release/examples/boot $(BIN)/examples/boot)
	@install -D -m 755 target/$(TRIPLE)/guest/bench-init $(BIN)/bench-init
	rootfs/build-initrd --arch $(ARCH) --agent target/$(TRIPLE)/guest/bench-init --output $(GUEST)/bench.img
ifneq ($(FOREIGN),)
	tests/pick-qemu $(ARCH) target/bench/qemu
	$(KVM) $(BIN)/bench machine
else
	@rm -rf $(PEERS)
	$(if $(FIRECRACKER),@install -D -m 755 $(FIRECRACKER) $(PEERS)/firecracker)
	$(if $(CLOUD_HYPERVISOR),@install -D -m 755 $(CLOUD_HYPERVISOR) $(PEERS)/cloud-hypervisor)
	tests/host/run --icount target/release/bench instructions
	tests/with-kvm target/release/bench
endif

# From the definitions that the binary itself reads its input by.
manual:
	$(CARGO) run --quiet --locked -p tatami --example manual -- target/manual

# PyPI's mkdocs-material, in a folder of its own.
MKDOCS := target/mkdocs/$(shell sha256sum shim/docs/requirements.txt | cut -c -16)
$(MKDOCS):
	@rm -rf target/mkdocs
	python3 -m venv $@.part
	$@.part/bin/pip install --quiet --requirement shim/docs/requirements.txt
	@mv $@.part $@

docs: manual $(MKDOCS) ## build the documentation site: target/site/index.html; a broken link is an error
	@rm -rf target/docs target/site
	@cp -r shim/docs target/docs
	@cp -r target/manual/reference target/docs/pages/
	@cp ARCHITECTURE.md target/docs/pages/architecture.md
	NO_MKDOCS_2_WARNING=1 $(MKDOCS)/bin/python -m mkdocs build --strict --config-file target/docs/mkdocs.yml --site-dir $(CURDIR)/target/site

install: build guest manual ## install under $(PREFIX), or below $(DESTDIR)
	install -D -m 755 target/release/tatami $(DESTDIR)$(PREFIX)/bin/tatami
	ln -sf tatami $(DESTDIR)$(PREFIX)/bin/containerd-shim-kata-v2
	ln -sf tatami $(DESTDIR)$(PREFIX)/bin/containerd-shim-tatami-v2
	ln -sf tatami $(DESTDIR)$(PREFIX)/bin/tatami-runtime
	install -D -m 644 $(GUEST)/vmlinux $(DESTDIR)$(PREFIX)/share/tatami/vmlinux
	install -D -m 644 $(GUEST)/initrd.img $(DESTDIR)$(PREFIX)/share/tatami/initrd.img
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 target/manual/man1/*.1
	install -D -m 644 target/manual/completions/tatami.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/tatami
	install -D -m 644 target/manual/completions/_tatami $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_tatami
	install -D -m 644 target/manual/completions/tatami.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/tatami.fish

uninstall: ## take back what install put there
	rm -f $(foreach name,tatami containerd-shim-kata-v2 containerd-shim-tatami-v2 tatami-runtime,$(DESTDIR)$(PREFIX)/bin/$(name))
	rm -rf $(DESTDIR)$(PREFIX)/share/tatami
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/tatami.1 $(DESTDIR)$(PREFIX)/share/man/man1/tatami-*.1 \
		$(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions/tatami zsh/site-functions/_tatami fish/vendor_completions.d/tatami.fish)

clean: ## remove what was built in the checkout; the cache stays
	rm -rf target
