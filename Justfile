# What people type. Each recipe is one line; what it runs says the rest.

# all tests: `cargo test`, on a real control plane
test *args:
    cargo test --workspace {{args}}

# khook's whole path, live in the terminal (--fast shortens the windows)
demo *args:
    cargo demo {{args}}

# format and lints, as CI does
lint:
    cargo fmt --all --check && cargo clippy --workspace --all-targets -- -D warnings

# put the code into its format
fmt:
    cargo fmt --all

# write the CRD anew; a test fails when it is not what the code says
crds:
    cargo run --quiet --bin khook -- crds > crds/hook.yaml

# every scenario with khook in a real cluster of kind's; `cargo e2e --provider local` needs no Docker
e2e *args:
    cargo e2e --provider kind {{args}}

# khook installed with Helm on a node of its own, upgraded in the middle of incidents, and removed (root on Linux)
release *args:
    cargo run --package e2e --bin e2e -- release {{args}}

# everything around khook breaks, one thing at a time and several at once; goes on where it was stopped
faults *args:
    cargo run --package e2e --features sabotage --bin e2e -- faults {{args}}

# the tests that take minutes: watches closed every half minute
soak *args:
    cargo test --package e2e {{args}} -- --ignored

# a target of fuzz/ with libFuzzer, until it finds something; needs cargo-fuzz
fuzz target *args:
    mkdir -p target/fuzz/{{target}} && CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_STRIP=none cargo fuzz run --features libfuzzer --sanitizer none {{target}} target/fuzz/{{target}} fuzz/corpus/{{target}} -- {{args}}

# khook's small build, measured: event to call, writes, CPU, memory
bench *args:
    cargo build --release --bin khook && KHOOK_BIN=target/release/khook cargo run --package e2e --bin e2e -- bench {{args}}

# the pictures of docs/dashboard.md, anew, from the page in a real browser
pictures:
    UPDATE_DOCS=1 cargo test --package e2e --test dashboard -- --ignored pictures

# a control plane to try things on, until Ctrl-C
control-plane:
    cargo run --quiet --package e2e --bin e2e -- control-plane

# a stand-in kagent, until Ctrl-C
agent *args:
    cargo run --quiet --package e2e --bin e2e -- agent {{args}}

# all that CI runs
ci:
    .ci/run
