//! Files are what people and their tools write; whoever is asked to look at one may not know where it is from.
//!
//! The input is a file.

use std::sync::LazyLock;

use khook::{
    check::{Checker, Severity, hooks_of},
    incident::policy::Policy,
};

static CHECKER: LazyLock<Checker> = LazyLock::new(|| Checker::new(Policy::default(), Some("shop".into())));

/// Whatever a file has in it, what is wrong with it is told: in it, in words, the same every time.
pub fn validate(data: &[u8]) {
    let checker = &*CHECKER;
    let checked = checker.check("file", data);
    assert_eq!(checked.faults, checker.check("file", data).faults, "the same every time");
    let lines = String::from_utf8_lossy(data).lines().count();
    for fault in &checked.faults {
        assert!(!fault.message.is_empty() && !fault.reason.is_empty(), "{fault:?}");
        // A file that ends too early is wrong behind its end.
        assert!(fault.line <= lines + 1, "{fault:?} in {lines} lines");
        assert_eq!(fault.line == 0, fault.column == 0, "{fault:?}");
    }
    let sound = checked.faults.iter().all(|fault| fault.severity == Severity::Warning);
    let read = hooks_of("file", data);
    if sound {
        let hooks = read.expect("what is sound can be read");
        assert_eq!(hooks.len(), checked.hooks);
        for hook in hooks {
            assert!(!hook.spec.event_configurations.is_empty(), "nothing was passed over");
        }
    }
}
