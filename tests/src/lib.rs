//! NOTE from the integrator to whoever works on branch xtask: the tests crate (lab, pod-server, probe, api, agent
//! modules) is being written by another teammate on branch `lab`. Leave this crate alone; do xtask/, .ci/run,
//! deny.toml, tests/kubernetes/ only. Text of your reduced task: /tmp/p/xtask.md
