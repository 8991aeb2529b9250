use super::*;
use crate::incident::hosts::Hosts;

fn faults(text: &str) -> Vec<Fault> {
    let direct_agents: Hosts = "*".parse().expect("hosts");
    let policy = Policy { direct_agents, ..Policy::default() };
    Checker::new(policy, None).check("hooks.yaml", text.as_bytes()).faults
}

fn lines(text: &str) -> Vec<String> {
    let line = |fault: &Fault| {
        format!("{}:{}: {} {}: {}", fault.line, fault.column, fault.reason, fault.path, fault.message)
    };
    faults(text).iter().map(line).collect()
}

const GOOD: &str = "\
apiVersion: kagent.dev/v1alpha2
kind: Hook
metadata:
  name: shop
spec:
  eventConfigurations:
  - eventType: pod-restart
    agentId: kagent/k8s-agent
    prompt: |
      Look at {{.ResourceName}}.
";

#[test]
fn a_sound_hook_has_no_fault() {
    assert_eq!(lines(GOOD), Vec::<String>::new());
    let json = serde_json::to_string_pretty(&serde_json::json!({
        "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "shop"},
        "spec": {"eventConfigurations": [{"eventType": "oom-kill", "agentId": "a", "prompt": "Look \u{1f600}"}]},
    }))
    .expect("JSON");
    assert_eq!(lines(&json), Vec::<String>::new());
    assert_eq!(lines(&json.replace("  ", "\t")), Vec::<String>::new(), "JSON with tabs");
}

#[test]
fn each_fault_stands_where_it_is() {
    let bad = GOOD
        .replace("pod-restart", "pod-restarts")
        .replace("    agentId", "    repeatIntervall: 5m\n    agentId")
        .replace("{{.ResourceName}}", "{{.ResourceNam}} {{if}}");
    assert_eq!(
        lines(&bad),
        [
            "7:16: FieldValueNotSupported spec.eventConfigurations[0].eventType: \"pod-restarts\" is not one of \
             \"pod-restart\", \"pod-pending\", \"oom-kill\", \"probe-failed\": did you mean \"pod-restart\"?",
            "8:5: UnknownField spec.eventConfigurations[0].repeatIntervall: there is no such field: did you mean \
             \"repeatInterval\"?",
            "11:32: PromptInvalid spec.eventConfigurations[0].prompt: `{{if}}`: this has no `{{end}}` after it",
        ]
    );
}

#[test]
fn what_is_missing_is_told_at_its_parent() {
    let bad = GOOD
        .replace("    agentId: kagent/k8s-agent\n", "")
        .replace("eventType: pod-restart\n    prompt", "prompt");
    assert_eq!(
        lines(&bad),
        ["7:5: FieldValueRequired spec.eventConfigurations[0].eventType: is missing, and must be there"]
    );
    assert_eq!(
        lines("apiVersion: kagent.dev/v1alpha2\nkind: Hook\n"),
        [
            "1:1: FieldValueRequired spec: is missing, and must be there",
            "1:1: FieldValueRequired metadata.name: is missing: a Hook has a name"
        ]
    );
}

#[test]
fn a_problem_of_a_prompt_points_into_the_file() {
    let bad = GOOD.replace("Look at {{.ResourceName}}.", "Look at\n      it: {{.Podd}}.");
    let [fault] = faults(&bad).try_into().expect("one");
    assert_eq!((fault.line, fault.column, fault.severity), (11, 13, Severity::Warning));
    assert!(fault.message.starts_with("there is no field"), "{}", fault.message);
    let broken = GOOD.replace("{{.ResourceName}}", "{{.ResourceName");
    let [fault] = faults(&broken).try_into().expect("one");
    assert_eq!((fault.line, fault.column, fault.reason.as_str()), (10, 15, "PromptInvalid"));
}

#[test]
fn one_agent_in_two_ways_is_told_at_the_second() {
    let second =
        "  - eventType: pod-restart\n    agentRef: {name: k8s-agent, namespace: kagent}\n    prompt: x\n";
    let [fault] = faults(&format!("{GOOD}{second}")).try_into().expect("one");
    assert_eq!((fault.line, fault.path.as_str()), (11, "spec.eventConfigurations"));
    let own = second.replace("namespace: kagent", "namespace: default");
    let same = GOOD.replace("kagent/k8s-agent", "k8s-agent");
    let [fault] = faults(&format!("{same}{own}")).try_into().expect("one");
    assert_eq!((fault.line, fault.reason.as_str()), (11, "DuplicateConfiguration"));
    assert_eq!(fault.path, "spec.eventConfigurations[1]");
}

#[test]
fn lists_are_opened_and_other_kinds_are_passed_over() {
    let inner = GOOD.replace('\n', "\n  ");
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {inner}\n- apiVersion: v1\n  kind: Pod\n");
    let all =
        format!("{list}---\n# nothing\n---\nreplicas: 3\n---\n{}", GOOD.replace("name: shop", "name: Shop"));
    let checked = Checker::new(Policy::default(), None).check("-", all.as_bytes());
    assert_eq!((checked.hooks, checked.others, checked.faults.len()), (2, 2, 1), "{:?}", checked.faults);
    assert_eq!((checked.faults[0].document, checked.faults[0].path.as_str()), (4, "metadata.name"));
}

#[test]
fn what_seems_meant_for_a_hook_is_told_of() {
    for (from, to, path) in [
        ("apiVersion: kagent.dev/v1alpha2\n", "", "apiVersion"),
        ("v1alpha2", "v1alpha1", "apiVersion"),
        ("kind: Hook", "kind: hook", "kind"),
        ("kind: Hook\n", "", "kind"),
    ] {
        let [fault] = faults(&GOOD.replace(from, to)).try_into().expect("one");
        assert_eq!(fault.path, path);
    }
    assert_eq!(lines(&GOOD.replace("kagent.dev", "example.com")), Vec::<String>::new());
}

#[test]
fn files_that_are_no_text_say_where() {
    let check = |bytes: &[u8]| Checker::new(Policy::default(), None).check("x", bytes).faults;
    let [fault] = check(b"a: 1\nb: \xff\n").try_into().expect("one");
    assert_eq!((fault.line, fault.column, fault.reason.as_str()), (2, 4, "NotText"));
    assert!(check(b"\xff\xfea\0").first().is_some_and(|fault| fault.message.contains("UTF-16")));
    assert_eq!(check(format!("\u{FEFF}{GOOD}").as_bytes()), []);
    assert_eq!(check(b""), []);
}

#[test]
fn settings_of_the_operator_count_where_they_are_given() {
    let policy = Policy { allowed_agents: r#"{"*":["./*"]}"#.parse().expect("agents"), ..Policy::default() };
    let faults = Checker::new(policy, None).check("x", GOOD.as_bytes()).faults;
    assert_eq!(faults[0].reason, "AgentNotAllowed");
    assert_eq!(faults[0].path, "spec.eventConfigurations[0]");
}
