//! The table of capabilities on the machine at hand.

mod common;

use bproc_bpf::{Capabilities, State};

#[test]
fn the_kernel_is_probed() {
    let Some(object) = common::object() else {
        return;
    };
    let probe = Capabilities::probe(&object);
    println!("{probe}");
    // What the other tests of this crate use is there.
    for name in ["btf", "ringbuf", "tp_btf", "pidns"] {
        assert!(probe.has(name), "{probe}");
    }
    assert!(probe.json().contains("\"tp_btf\"") && probe.json().contains("\"unix-diag\""));
    let missing = |row: &&bproc_bpf::Row| row.state == State::Missing;
    for row in probe.rows.iter().filter(missing) {
        assert!(!row.detail.is_empty() && !row.consequence.is_empty(), "{row:?}");
    }
}

#[test]
fn a_missing_object_is_told() {
    let probe = Capabilities::probe("/nonexistent/object.o".as_ref());
    assert!(!probe.usable());
    assert!(probe.to_string().contains("/nonexistent/object.o"), "{probe}");
}
