//! The control plane: what it serves, how it restarts, and that nothing of it is left behind.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use e2e::control_plane::{ControlPlane, Options, client_of};
use e2e::events::Event;
use e2e::operator::Operator;
use e2e::process::{Process, Scratch, Spec};
use e2e::wait::eventually;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::events::v1;
use kube::Api;
use kube::api::{ListParams, PostParams};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn events_are_posted_as_kubernetes_posts_them_and_survive_a_restart() -> Result<()> {
    let cluster = ControlPlane::start(Options {
        apiserver_args: vec!["--min-request-timeout=20".to_owned()],
        ..Options::default()
    })
    .await?;
    let namespace = cluster.fresh_namespace("events").await?;
    let client = cluster.client().await?;

    let hour_ago = Utc::now() - TimeDelta::hours(1);
    let mut back_off = Event::kubelet("BackOff", "Back-off restarting failed container app")
        .pod(&namespace, "web-1")
        .uid("11111111-2222-3333-4444-555555555555")
        .container("app")
        .first_seen(hour_ago)
        .count(3)
        .post(&client)
        .await?;
    let mut unschedulable =
        Event::scheduler("FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu.")
            .pod(&namespace, "web-2")
            .post(&client)
            .await?;
    Event::kubelet("Pulled", "Container image already present")
        .pod(&namespace, "web-1")
        .normal()
        .post(&client)
        .await?;

    // The Normal one is left out by the server.
    let events: Api<v1::Event> = Api::namespaced(client.clone(), &namespace);
    let warnings = ListParams::default().fields("type=Warning,regarding.kind=Pod");
    let seen = events.list(&warnings).await?.items;
    let reasons: BTreeSet<_> = seen.iter().filter_map(|event| event.reason.as_deref()).collect();
    assert_eq!(reasons, ["BackOff", "FailedScheduling"].into());

    let by = |reason: &str| seen.iter().find(|event| event.reason.as_deref() == Some(reason)).unwrap();
    let kubelet = by("BackOff");
    let about = kubelet.regarding.as_ref().unwrap();
    assert_eq!(about.name.as_deref(), Some("web-1"));
    assert_eq!(about.field_path.as_deref(), Some("spec.containers{app}"));
    assert_eq!(about.uid.as_deref(), Some("11111111-2222-3333-4444-555555555555"));
    assert_eq!((kubelet.deprecated_count, kubelet.event_time.is_none()), (Some(3), true));
    assert_eq!(
        kubelet.deprecated_first_timestamp.as_ref().map(|time| time.0.as_second()),
        Some(hour_ago.timestamp())
    );
    let scheduler = by("FailedScheduling");
    assert!(
        scheduler.event_time.is_some() && scheduler.series.is_none() && scheduler.deprecated_count.is_none()
    );

    back_off.repeat(&client).await?;
    back_off.repeat_as(&client, 5, Utc::now(), Some("Back-off 40s restarting failed container")).await?;
    let later = Utc::now() + TimeDelta::seconds(1);
    unschedulable.repeat_as(&client, 5, later, None).await?;

    cluster.stop_apiserver()?;
    assert!(events.list(&warnings).await.is_err(), "the apiserver is away");
    cluster.start_apiserver().await?;
    let seen =
        eventually("the events after the restart", SOON, async || Ok(events.list(&warnings).await?.items))
            .await?;
    let by = |reason: &str| seen.iter().find(|event| event.reason.as_deref() == Some(reason)).unwrap();
    assert_eq!(by("BackOff").deprecated_count, Some(5));
    assert_eq!(by("FailedScheduling").series.as_ref().map(|series| series.count), Some(5));
    assert_eq!(by("BackOff").note.as_deref(), Some("Back-off 40s restarting failed container"));

    cluster.pause_apiserver()?;
    let silent = tokio::time::timeout(Duration::from_millis(300), events.list(&warnings)).await;
    assert!(silent.is_err(), "a paused apiserver neither answers nor closes");
    cluster.resume_apiserver()?;
    eventually("an answer", SOON, async || Ok(events.list(&warnings).await.map(drop)?)).await?;

    let pids = cluster.pids();
    let dir = cluster.dir().to_owned();
    assert_eq!(pids.iter().filter(|pid| alive(**pid)).count(), 5, "two programs, two supervisors, a janitor");
    drop(cluster);
    assert_eq!(pids.iter().filter(|pid| alive(**pid)).count(), 0, "nothing runs after the drop");
    assert!(!dir.exists());
    Ok(())
}

#[tokio::test]
async fn it_serves_custom_resources_tables_and_lesser_rights() -> Result<()> {
    let cluster = ControlPlane::shared().await?;
    let namespace = cluster.fresh_namespace("tables").await?;
    let applied = cluster.apply_in(&namespace, include_str!("widgets.yaml")).await?;
    assert_eq!(applied.len(), 3);
    let narrow = cluster.table("e2e.khook.test/v1/widgets", Some(&namespace), false).await?;
    assert_eq!(narrow, "NAME           SIZE   MADE\nbig-widget     12     \nsmall-widget   1      \n");
    let wide = cluster.table("e2e.khook.test/v1/widgets", None, true).await?;
    assert!(wide.starts_with("NAMESPACE"), "{wide}");
    assert!(wide.contains("COLOUR") && wide.contains("red"), "{wide}");
    let empty = cluster.table("v1/pods", Some(&namespace), false).await?;
    assert_eq!(empty, format!("No resources found in {namespace} namespace.\n"));

    let refused = cluster.apply(&include_str!("widgets.yaml").replace("size: 12", "size: twelve")).await;
    let words = format!("{:#}", refused.expect_err("a size is a number"));
    assert!(
        words.contains("applying Widget big-widget") && words.contains("spec.size: expected numeric"),
        "{words}"
    );

    // A service account may do nothing until a Role says so.
    let kubeconfig = cluster.service_account_kubeconfig(&namespace, "khook").await?;
    let maps: Api<ConfigMap> = Api::namespaced(client_of(&kubeconfig).await?, &namespace);
    let refused = maps.create(&PostParams::default(), &ConfigMap::default()).await.expect_err("no rights");
    assert!(refused.to_string().contains(&format!("system:serviceaccount:{namespace}:khook")), "{refused}");
    Ok(())
}

#[tokio::test]
async fn its_processes_end_with_their_parent_however_that_ends() -> Result<()> {
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let scratch = Scratch::new()?;
        let log = scratch.path().join("log");
        let mut parent = Process::spawn(&Spec::new(env!("CARGO_BIN_EXE_e2e"), &log).arg("control-plane"))?;
        let dir = eventually("its KUBECONFIG", SOON, async || {
            let text = fs::read_to_string(&log)?;
            let path = text.lines().find_map(|line| line.strip_prefix("export KUBECONFIG="));
            Ok(PathBuf::from(path.with_context(|| text.clone())?).parent().context("a folder")?.to_owned())
        })
        .await?;
        assert_eq!(mentioning(&dir).len(), 5, "two programs, two supervisors, a janitor");
        parent.signal(signal)?;
        parent.wait_exit(SOON).await?;
        eventually("its processes to end", SOON, async || {
            let left = mentioning(&dir);
            ensure!(left.is_empty() && !dir.exists(), "after {signal:?}: {left:?}, folder {}", dir.exists());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_apiserver_that_does_not_start_says_why() {
    let options = Options { apiserver_args: vec!["--no-such-flag".to_owned()], ..Options::default() };
    let error = format!("{:#}", ControlPlane::start(options).await.expect_err("a wrong flag"));
    assert!(error.contains("kube-apiserver did not start") && error.contains("no-such-flag"), "{error}");
}

/// etcd stands in for khook here: it too has /readyz and /metrics.
#[tokio::test]
async fn an_operator_is_killed_paused_and_restarted() -> Result<()> {
    let etcd = tokio::task::spawn_blocking(e2e::assets::Assets::find_or_build).await??.etcd;
    let setup = Operator::new(Path::new("kubeconfig"), "http://127.0.0.1:1")?.program(etcd);
    let client = format!("http://127.0.0.1:{}", setup.health_port());
    let metrics = format!("http://127.0.0.1:{}", setup.metrics_port());
    let peer = format!("http://127.0.0.1:{}", e2e::process::free_port()?);
    let data = setup.dir().join("data").display().to_string();
    let args = ["--data-dir", &data, "--listen-client-urls", &client, "--advertise-client-urls", &client];
    let more = ["--listen-metrics-urls", &metrics, "--listen-peer-urls", &peer, "--logger=zap"];
    let setup =
        args.iter().chain(&more).fold(setup, |setup, arg| setup.arg(arg)).env("ETCD_NAME", "stand-in");
    let operator = setup.start().await?;
    operator.wait_ready(SOON).await?;
    assert!(operator.log().contains("stand-in"), "the environment arrives");
    assert_eq!(operator.metric("etcd_server_has_leader", &[]).await?, 1.0);
    assert!(operator.memory_bytes()? > 1 << 20);

    operator.pause()?;
    let silent = tokio::time::timeout(Duration::from_millis(300), operator.ready()).await;
    assert!(silent.is_err(), "a paused process is silent");
    operator.resume()?;
    operator.wait_ready(SOON).await?;

    let first = operator.pid();
    operator.kill()?;
    assert!(!operator.is_running() && operator.ready().await.is_err());
    assert_eq!(operator.wait_exit(SOON).await?, 137);
    let error = format!("{:#}", operator.wait_ready(SOON).await.expect_err("it is dead"));
    assert!(error.contains("its last words"), "{error}");
    operator.restart()?;
    operator.wait_ready(SOON).await?;
    assert_ne!(operator.pid(), first);

    operator.terminate()?;
    operator.wait_exit(SOON).await?;
    operator.restart()?;
    operator.wait_ready(SOON).await?;
    let (pid, dir) = (operator.pid().unwrap(), operator.dir().to_owned());
    drop(operator);
    assert!(!alive(pid) && !dir.exists());
    Ok(())
}

/// Whether a process runs; one that has ended and was not reaped yet does not.
fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The processes whose command line speaks of this folder.
fn mentioning(dir: &Path) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let name = dir.to_string_lossy().into_owned();
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&name) && alive(*pid)
    })
    .collect()
}
