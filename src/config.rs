//! A setting is one value an operator of khook may choose, by flag or by environment.
//!
//! Every flag is also an environment variable: `--stale-after` is `STALE_AFTER`. A flag wins over
//! the environment, and an empty variable is an unset one. All values are parsed and checked before
//! anything starts, so a wrong one stops the start with one sentence instead of surfacing later.

use std::{error::Error as _, ffi::OsString, fmt, fs, net::IpAddr, path::PathBuf, time::Duration};

use clap::{
    Arg, ArgMatches, Args, Command, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};
use http::HeaderValue;
use reqwest::Url;

use crate::{
    hook::parse_duration,
    incident::{allowed::Allowed, hosts::Hosts, outcome::Protocol, policy::Policy},
    otlp,
    source::Scope,
    telemetry,
};

/// Everything that can be set, parsed and checked. Spans of time are written as Kubernetes writes
/// them: `200ms`, `1.5s`, `10m`, `1h30m`.
#[derive(Args, Clone)]
#[command(args_override_self = true)]
pub struct Settings {
    /// Base URL of kagent's controller
    #[arg(long, alias = "kagent-api-url", default_value = "http://kagent-controller.kagent.svc.cluster.local:8083", value_parser = base_url)]
    pub kagent_base_url: Url,
    /// User in whose name agents are asked
    #[arg(long, default_value = "admin@kagent.dev", value_parser = header_text)]
    pub kagent_user_id: String,
    /// Bearer token for kagent
    #[arg(long, value_parser = api_key)]
    pub kagent_api_key: Option<Secret>,
    /// File with the bearer token for kagent, read again when it changes
    #[arg(long)]
    pub kagent_api_key_file: Option<PathBuf>,
    /// Version of A2A that kagent speaks: auto (found out), 0.3 or 1.0
    #[arg(long, default_value = "auto", value_parser = protocol)]
    pub kagent_protocol: AnyOrOne,
    /// Base URL of kagent's UI: the status of an incident then has a link to its session
    #[arg(long, value_parser = base_url)]
    pub kagent_ui_url: Option<Url>,
    /// Hosts at which Hooks may have other A2A agents asked (spec.eventConfigurations[].agent.url), with
    /// commas: agent.example.com, *.agents.svc, 10.1.0.0/16, 127.0.0.1:8080 or *. None by default
    #[arg(long, default_value = "", hide_default_value = true, value_parser = hosts)]
    pub direct_agent_hosts: Hosts,
    /// Whether the beginning of an agent's answer is shown in status and Events; it may quote logs
    #[arg(long, default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean)]
    pub show_answers: bool,
    /// Which of kagent's agents the Hooks of a namespace may have asked, as JSON, where . is the Hook's own
    /// namespace: {"shop":["kagent/k8s-agent","./*"],"team-*":["kagent/safe-*"]}. All by default; once set,
    /// what it does not name is refused
    #[arg(long, default_value = "", hide_default_value = true, value_parser = allowed_agents)]
    pub allowed_agents: Allowed,
    /// Longest time one call to an agent may take
    #[arg(long, default_value = "120s", value_parser = span("100ms", "1h"))]
    pub kagent_api_timeout: Duration,

    /// Namespaces whose Hooks and pods are watched, with commas; all by default. Each costs four watches
    #[arg(long, default_value = "", hide_default_value = true, value_parser = namespaces)]
    pub watch_namespaces: Namespaces,

    /// error, warn, info, debug, trace or off; or tracing directives such as `info,khook::agent=debug`
    #[arg(long, default_value = "info", value_parser = log_level)]
    pub log_level: String,
    /// Form of the log: auto (text on a terminal, else JSON), json or text
    #[arg(long, default_value = "auto", value_parser = telemetry::Format::parse)]
    pub log_format: telemetry::Format,

    /// Port of /metrics; 0 takes any free port
    #[arg(long, default_value = "8080", value_parser = number::<u16>(0, 65_535))]
    pub metrics_port: u16,
    /// Port of /healthz and /readyz; may be the same as the metrics port, 0 takes any free port
    #[arg(long, default_value = "8081", value_parser = number::<u16>(0, 65_535))]
    pub health_port: u16,
    /// Port of the page that shows incidents, and of its API; 0: there is none. It has no login of its own
    #[arg(long, default_value = "0", value_parser = number::<u16>(0, 65_535))]
    pub dashboard_port: u16,
    /// Address these ports listen on
    #[arg(long, default_value = "0.0.0.0", value_parser = address)]
    pub bind_address: IpAddr,

    /// Whether only the holder of a Lease works; saves work with several replicas, safety does not depend on it
    #[arg(long, default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = boolean)]
    pub leader_election: bool,
    /// Name of the Lease
    #[arg(long, default_value = "khook", value_parser = object_name)]
    pub lease_name: String,
    /// Namespace of the Lease [default: the namespace khook runs in]
    #[arg(long, alias = "pod-namespace", value_parser = object_name)]
    pub lease_namespace: Option<String>,
    /// Name of the pod khook runs in: who holds the Lease. A container that restarts in its pod then
    /// leads again at once [default: a name of its own for each process]
    #[arg(long, value_parser = object_name)]
    pub pod_name: Option<String>,
    /// How long leadership lasts without being renewed; whole seconds
    #[arg(long, default_value = "15s", value_parser = whole_seconds("1s", "1h"))]
    pub lease_duration: Duration,
    /// How often the leader renews; less than the lease's duration
    #[arg(long, default_value = "5s", value_parser = span("100ms", "1h"))]
    pub lease_renew: Duration,

    /// Calls to agents in flight at a time
    #[arg(long, default_value = "64", value_parser = number::<usize>(1, 10_000))]
    pub call_slots: usize,
    /// Calls to one agent in flight at a time
    #[arg(long, default_value = "16", value_parser = number::<usize>(1, 10_000))]
    pub call_slots_per_agent: usize,

    /// An occurrence older than this raises nothing
    #[arg(long, default_value = "15m", value_parser = span("1ms", "24h"))]
    pub stale_after: Duration,
    /// An incident is not notified again within this time, where the Hook does not say otherwise
    #[arg(long, default_value = "10m", value_parser = span("1ms", "168h"))]
    pub repeat_interval: Duration,
    /// Quiet time after which an incident resolves, where the Hook does not say otherwise
    #[arg(long, default_value = "10m", value_parser = span("1ms", "168h"))]
    pub resolve_timeout: Duration,
    /// How long a resolved incident is remembered: trouble within it is the same episode
    #[arg(long, default_value = "1h", value_parser = span("1ms", "168h"))]
    pub retention: Duration,
    /// An incident that could not be delivered for this long is given up
    #[arg(long, default_value = "24h", value_parser = span("1ms", "720h"))]
    pub delivery_timeout: Duration,
    /// How long an agent's task is followed
    #[arg(long, default_value = "30m", value_parser = span("1ms", "168h"))]
    pub task_deadline: Duration,
    /// Factor on every built-in wait before a condition counts as trouble
    #[arg(long, default_value = "1", value_parser = factor)]
    pub hold_scale: f64,
    /// How long a condition must be clear before its incident resolves
    #[arg(long, default_value = "1m", value_parser = span("0s", "24h"))]
    pub clear_hold: Duration,
    /// How long a container must run before its restart or OOM incident resolves
    #[arg(long, default_value = "10m", value_parser = span("0s", "24h"))]
    pub running_hold: Duration,
    /// First wait before a call that did not reach its agent is repeated; doubles
    #[arg(long, default_value = "2s", value_parser = span("1ms", "1h"))]
    pub retry_base: Duration,
    /// Longest such wait
    #[arg(long, default_value = "1m", value_parser = span("1ms", "24h"))]
    pub retry_max: Duration,
    /// Failed calls in a row before an incident waits for its next round
    #[arg(long, default_value = "3", value_parser = number::<u32>(1, 100))]
    pub attempts_per_round: u32,
    /// Wait between two rounds, unless the agent is seen to be well earlier
    #[arg(long, default_value = "10m", value_parser = span("1ms", "24h"))]
    pub round_interval: Duration,
    /// Extra time before another process's unfinished call is taken over
    #[arg(long, default_value = "30s", value_parser = span("0s", "1h"))]
    pub takeover_margin: Duration,
    /// Incidents kept in one Hook's status
    #[arg(long, default_value = "100", value_parser = number::<usize>(1, 500))]
    pub max_entries: usize,
    /// Bytes of incidents kept in one Hook's status
    #[arg(long, default_value = "147456", value_parser = number::<usize>(4_096, 1_048_576))]
    pub max_bytes: usize,
    /// Resolved incidents kept for people to read
    #[arg(long, default_value = "20", value_parser = number::<usize>(0, 500))]
    pub keep_resolved: usize,
    /// Failures in a row after which an agent gets no calls but probes
    #[arg(long, default_value = "5", value_parser = number::<u32>(1, 1_000))]
    pub breaker_threshold: u32,
    /// First wait before such a probe; doubles
    #[arg(long, default_value = "15s", value_parser = span("1ms", "1h"))]
    pub breaker_base: Duration,
    /// Longest such wait
    #[arg(long, default_value = "2m", value_parser = span("1ms", "24h"))]
    pub breaker_max: Duration,

    /// Shortest time between two status writes of one Hook
    #[arg(long, default_value = "200ms", value_parser = span("0s", "1m"))]
    pub write_interval: Duration,
    /// How long the outcome of a call may wait for another write to ride along with
    #[arg(long, default_value = "1s", value_parser = span("0s", "1m"))]
    pub outcome_delay: Duration,
    /// Shortest time between two writes that change only counts and last-seen times
    #[arg(long, default_value = "30s", value_parser = span("0s", "1h"))]
    pub quiet_write_interval: Duration,
    /// How long after a call with an unknown outcome its session is looked up; what arrived must be in it by then
    #[arg(long, default_value = "5s", value_parser = span("0s", "10m"))]
    pub lookup_grace: Duration,
    /// First wait between two looks at an agent's task; grows
    #[arg(long, default_value = "1s", value_parser = span("10ms", "1h"))]
    pub follow_min: Duration,
    /// Longest such wait
    #[arg(long, default_value = "15s", value_parser = span("10ms", "1h"))]
    pub follow_max: Duration,
    /// After this time the apiserver is asked to end a watch, and it is opened again; whole seconds
    #[arg(long, default_value = "60s", value_parser = whole_seconds("1s", "295s"))]
    pub watch_timeout: Duration,
    /// How long calls in flight may go on after a request to stop
    #[arg(long, default_value = "20s", value_parser = span("0s", "10m"))]
    pub drain_timeout: Duration,

    /// The settings of traces that are there, by the long names of their flags.
    #[arg(skip)]
    otel: Vec<(&'static str, String)>,
    /// The settings as they were written, for the log of the start.
    #[arg(skip)]
    written: Vec<(String, String)>,
}

/// Shows what was written, without secrets.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.effective()).finish()
    }
}

/// How khook shows itself to kagent beyond the user's name.
#[derive(Clone, Debug, PartialEq)]
pub enum Credential {
    /// No token.
    None,
    /// A fixed bearer token.
    Key(Secret),
    /// A file with the bearer token, to be read again when it changes.
    File(PathBuf),
}

/// A version of A2A, where it need not be found out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnyOrOne(pub Option<Protocol>);

/// Names of namespaces; none stands for all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Namespaces(Vec<String>);

/// A value that is shown nowhere.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// The value itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One sentence about a value that is not allowed.
    #[error("{0}")]
    Value(String),
    /// The command line itself is not understood, or help was asked for.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

impl Settings {
    /// Reads the settings from flags (without the program's name) and an environment.
    ///
    /// # Errors
    /// [`Error::Value`] names the setting, its value (never a secret's) and what is allowed.
    pub fn read(
        flags: impl IntoIterator<Item = OsString>,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Error> {
        let command = Self::command().no_binary_name(true);
        let argv = environment_flags(&command, env).into_iter().chain(flags);
        let matches = command.clone().try_get_matches_from(argv).map_err(explain)?;
        let mut settings = Self::from_arg_matches(&matches)?;
        let otel = otlp::SETTINGS.iter().filter_map(|setting| {
            let value = matches.get_one::<String>(setting.long)?;
            Some((setting.long, value.clone()))
        });
        settings.otel = otel.collect();
        settings.check()?;
        settings.written = command.get_arguments().filter_map(|arg| written(arg, &matches)).collect();
        Ok(settings)
    }

    /// The command line of `khook run`, with each setting's variable in its help.
    pub fn command() -> Command {
        const ABOUT: &str = "Runs the operator. Each flag is an environment variable too; the flag wins. \
            Spans of time are written as Kubernetes writes them: 200ms, 1.5s, 10m, 1h30m.";
        // A table, not fields: what clap derives for a field is two kilobytes, and these are sixteen.
        let traces = otlp::SETTINGS.iter().map(|setting| {
            let parse = setting.parse;
            let arg = Arg::new(setting.long).long(setting.long).help(setting.help);
            arg.value_parser(move |text: &str| parse(text).map(|()| text.to_owned()))
        });
        Self::augment_args(Command::new("khook run")).args(traces).about(ABOUT).long_about(ABOUT).mut_args(
            |arg| {
                let names: Vec<_> = longs(&arg).map(env_name).collect();
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                match names.is_empty() {
                    true => arg,
                    false => arg.help(format!("{help} [env: {}]", names.join(", "))),
                }
            },
        )
    }

    /// The settings in effect, by the names of their variables, without secrets.
    pub fn effective(&self) -> impl Iterator<Item = (&str, &str)> {
        self.written.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// What the state machine works with.
    pub fn policy(&self) -> Policy {
        Policy {
            stale_after: self.stale_after,
            repeat_interval: self.repeat_interval,
            resolve_timeout: self.resolve_timeout,
            retention: self.retention,
            delivery_timeout: self.delivery_timeout,
            task_deadline: self.task_deadline,
            hold_scale: self.hold_scale,
            unseen_share: Policy::default().unseen_share,
            clear_hold: self.clear_hold,
            running_hold: self.running_hold,
            lookup_grace: self.lookup_grace,
            retry_base: self.retry_base,
            retry_max: self.retry_max,
            attempts_per_round: self.attempts_per_round,
            round_interval: self.round_interval,
            takeover_margin: self.takeover_margin,
            claim_duration: self.claim_duration(),
            max_entries: self.max_entries,
            max_bytes: self.max_bytes,
            keep_resolved: self.keep_resolved,
            breaker_threshold: self.breaker_threshold,
            breaker_base: self.breaker_base,
            breaker_max: self.breaker_max,
            direct_agents: self.direct_agent_hosts.clone(),
            allowed_agents: self.allowed_agents.clone(),
            show_answers: self.show_answers,
            ui_url: self.kagent_ui_url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()),
        }
    }

    /// Longest time from a claim to its call's outcome: the session, the message, and some slack.
    pub fn claim_duration(&self) -> Duration {
        self.kagent_api_timeout + self.session_timeout() + Duration::from_secs(5)
    }

    /// Longest time the creation of a session may take.
    pub fn session_timeout(&self) -> Duration {
        self.kagent_api_timeout.min(Duration::from_secs(30))
    }

    /// Where Hooks and pods are watched; never empty.
    pub fn scopes(&self) -> Vec<Scope> {
        match self.watch_namespaces.0.as_slice() {
            [] => vec![Scope::Everywhere],
            some => some.iter().cloned().map(Scope::Namespace).collect(),
        }
    }

    /// How to authenticate to kagent.
    pub fn credential(&self) -> Credential {
        match (&self.kagent_api_key, &self.kagent_api_key_file) {
            (Some(key), _) => Credential::Key(key.clone()),
            (None, Some(file)) => Credential::File(file.clone()),
            (None, None) => Credential::None,
        }
    }

    /// Where traces go; none where there are to be none.
    ///
    /// # Errors
    /// A protocol khook does not speak, where there are to be traces.
    pub fn traces(&self) -> Result<Option<otlp::Config>, Error> {
        let get =
            |long: &str| self.otel.iter().find(|(name, _)| *name == long).map(|(_, value)| value.as_str());
        otlp::Config::parse(get).map_err(|(long, allowed)| {
            let value = shown(long, get(long).unwrap_or_default());
            Error::Value(format!("{} (--{long}) is {value}, but must be {allowed}", env_name(long)))
        })
    }

    /// What no single value can show.
    fn check(&self) -> Result<(), Error> {
        let at_most = |small: &str, a: Duration, large: &str, b: Duration| match a <= b {
            true => Ok(()),
            false => Err(Error::Value(format!(
                "{small} is {a:?}, but must not be longer than {large}, which is {b:?}"
            ))),
        };
        at_most("RETRY_BASE", self.retry_base, "RETRY_MAX", self.retry_max)?;
        at_most("BREAKER_BASE", self.breaker_base, "BREAKER_MAX", self.breaker_max)?;
        at_most("FOLLOW_MIN", self.follow_min, "FOLLOW_MAX", self.follow_max)?;
        at_most("WRITE_INTERVAL", self.write_interval, "QUIET_WRITE_INTERVAL", self.quiet_write_interval)?;
        if self.lease_renew >= self.lease_duration {
            return Err(Error::Value(format!(
                "LEASE_RENEW is {:?}, but must be shorter than LEASE_DURATION, which is {:?}",
                self.lease_renew, self.lease_duration
            )));
        }
        if self.call_slots_per_agent > self.call_slots {
            return Err(Error::Value(format!(
                "CALL_SLOTS_PER_AGENT is {}, but must not be more than CALL_SLOTS, which is {}",
                self.call_slots_per_agent, self.call_slots
            )));
        }
        self.traces()?;
        if self.kagent_api_key.is_some() && self.kagent_api_key_file.is_some() {
            let both = "KAGENT_API_KEY and KAGENT_API_KEY_FILE are both set, but only one of them may be";
            return Err(Error::Value(both.into()));
        }
        if let Some(file) = &self.kagent_api_key_file {
            let refuse = |why: String| {
                Error::Value(format!(
                    "KAGENT_API_KEY_FILE (--kagent-api-key-file) is \"{}\", but must be a file with a bearer token: {why}",
                    file.display()
                ))
            };
            let key = fs::read_to_string(file).map_err(|e| refuse(e.to_string()))?;
            api_key(&key).map_err(|_| refuse("what is in it is empty or cannot go into a header".into()))?;
        }
        Ok(())
    }
}

/// `STALE_AFTER` for `stale-after`.
fn env_name(long: &str) -> String {
    long.replace('-', "_").to_ascii_uppercase()
}

/// The names of a setting's flag, the usual one first.
fn longs(arg: &Arg) -> impl Iterator<Item = &str> {
    arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default())
}

/// The environment as flags, to stand before the real ones, which override them.
fn environment_flags(command: &Command, env: impl Fn(&str) -> Option<OsString>) -> Vec<OsString> {
    let flag = |arg: &Arg| {
        let value = longs(arg).find_map(|long| env(&env_name(long)).filter(|value| !value.is_empty()))?;
        let mut flag = OsString::from(format!("--{}=", arg.get_long()?));
        flag.push(value);
        Some(flag)
    };
    command.get_arguments().filter_map(flag).collect()
}

/// Turns clap's error about a value into one sentence.
fn explain(error: clap::Error) -> Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (ErrorKind::ValueValidation | ErrorKind::InvalidUtf8, Some(name)) =
        (error.kind(), text(ContextKind::InvalidArg))
    else {
        return Error::Usage(error);
    };
    // `--max-bytes <MAX_BYTES>` or `--leader-election[=<LEADER_ELECTION>]`
    let long = name.trim_start_matches('-').split([' ', '[', '=']).next().unwrap_or_default();
    let allowed = error.source().map(ToString::to_string).unwrap_or_else(|| "text".into());
    let value = shown(long, text(ContextKind::InvalidValue).unwrap_or_default());
    Error::Value(format!("{} (--{long}) is {value}, but must be {allowed}", env_name(long)))
}

/// A setting's name and value, for the log.
fn written(arg: &Arg, matches: &ArgMatches) -> Option<(String, String)> {
    let long = arg.get_long()?;
    let value = matches.get_raw(arg.get_id().as_str())?.next_back()?;
    Some((env_name(long), shown(long, &value.to_string_lossy()).trim_matches('"').to_owned()))
}

/// A setting's value as it may be shown.
fn shown(long: &str, value: &str) -> String {
    match long {
        "kagent-api-key" | "otel-exporter-otlp-headers" | "otel-exporter-otlp-traces-headers" => {
            "(hidden)".into()
        }
        // Escaped: a sentence is one line, whatever was put into the setting.
        "kagent-base-url"
        | "kagent-ui-url"
        | "otel-exporter-otlp-endpoint"
        | "otel-exporter-otlp-traces-endpoint" => format!("{:?}", without_userinfo(value)),
        _ => format!("{value:?}"),
    }
}

/// A URL, or what was meant to be one, without a password.
fn without_userinfo(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    // Userinfo ends at the last @ before the path; a wrong URL may have it later: rather too much is cut.
    match url.rfind('@') {
        Some(at) if at >= start => format!("{}(hidden)@{}", &url[..start], &url[at + 1..]),
        _ => url.into(),
    }
}

/// An address that other paths are put behind.
pub fn base_url(text: &str) -> Result<Url, String> {
    const FORM: &str = "an http or https URL without user, query and fragment";
    let mut url = Url::parse(text).map_err(|e| format!("{FORM} ({e})"))?;
    let bare = url.query().is_none() && url.fragment().is_none();
    let nobody = url.username().is_empty() && url.password().is_none();
    if !matches!(url.scheme(), "http" | "https") || !bare || !nobody {
        return Err(FORM.into());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

fn protocol(text: &str) -> Result<AnyOrOne, String> {
    match text {
        "auto" => Ok(AnyOrOne(None)),
        "0.3" => Ok(AnyOrOne(Some(Protocol::V03))),
        "1.0" => Ok(AnyOrOne(Some(Protocol::V10))),
        _ => Err("auto, 0.3 or 1.0".into()),
    }
}

pub(crate) fn hosts(text: &str) -> Result<Hosts, String> {
    text.parse()
}

pub(crate) fn allowed_agents(text: &str) -> Result<Allowed, String> {
    text.parse()
}

fn namespaces(text: &str) -> Result<Namespaces, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(namespace).collect::<Result<_, _>>()?;
    names.sort();
    names.dedup();
    Ok(Namespaces(names))
}

fn namespace(text: &str) -> Result<String, String> {
    match object_name(text) {
        Ok(name) if name.len() <= 63 && !name.contains('.') => Ok(name),
        _ => Err(format!("names of namespaces, separated by commas; {text:?} is none")),
    }
}

fn header_text(text: &str) -> Result<String, String> {
    match HeaderValue::from_str(text) {
        Ok(_) if text.trim() == text => Ok(text.into()),
        _ => Err("text that can go into an HTTP header".into()),
    }
}

/// A bearer token; a file's may end in a newline.
fn api_key(text: &str) -> Result<Secret, String> {
    match text.trim() {
        key if !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic()) => Ok(Secret(key.into())),
        _ => Err("a bearer token: visible ASCII without blanks".into()),
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "an IP address such as 0.0.0.0, 127.0.0.1 or ::".into())
}

fn object_name(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let bytes = text.as_bytes();
    if bytes.len() <= 253 && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(text.into());
    }
    Err("a name as Kubernetes takes it: lower case letters, digits, '-' and '.'".into())
}

fn log_level(text: &str) -> Result<String, String> {
    telemetry::filter(text).map(|_| text.into())
}

/// Yes or no, in several ways.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("true or false".into()),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (0.0..=100.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 0 to 100".into()),
    }
}

fn number<T>(min: u64, max: u64) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: TryFrom<u64>,
{
    move |text| {
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| format!("a whole number from {min} to {max}"))
    }
}

fn span(min: &'static str, max: &'static str) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        let (least, most) = (parse_duration(min)?, parse_duration(max)?);
        match parse_duration(text) {
            Ok(span) if (least..=most).contains(&span) => Ok(span),
            _ => Err(format!("a span of time from {min} to {max}, such as 200ms, 1.5s, 10m or 1h30m")),
        }
    }
}

fn whole_seconds(min: &'static str, max: &'static str) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| match span(min, max)(text) {
        Ok(span) if span.subsec_nanos() == 0 => Ok(span),
        _ => Err(format!("whole seconds from {min} to {max}, such as 15s or 2m")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn read(flags: &[&str], env: &[(&str, &str)]) -> Result<Settings, Error> {
        let lookup =
            |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Settings::read(flags.iter().map(OsString::from), lookup)
    }

    fn refusal(flags: &[&str], env: &[(&str, &str)]) -> String {
        match read(flags, env) {
            Err(Error::Value(sentence)) => sentence,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_the_products_policy() {
        let settings = read(&[], &[]).unwrap();
        let claim_duration = Duration::from_secs(120 + 30 + 5);
        assert_eq!(settings.policy(), Policy { claim_duration, ..Policy::default() });
        assert_eq!(settings.credential(), Credential::None);
        assert!(settings.leader_election);
    }

    #[test]
    fn namespaces_are_watched_once_each_or_all() {
        let scopes = |text: &str| read(&["--watch-namespaces", text], &[]).unwrap().scopes();
        let namespace = |name: &str| Scope::Namespace(name.into());
        assert_eq!(scopes(""), [Scope::Everywhere]);
        assert_eq!(scopes(" , "), [Scope::Everywhere]);
        assert_eq!(scopes("shop, ops,shop"), [namespace("ops"), namespace("shop")]);
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_an_empty_variable_is_unset() {
        let env = [("STALE_AFTER", "5m"), ("METRICS_PORT", ""), ("CALL_SLOTS", "32")];
        let settings = read(&["--stale-after", "7m"], &env).unwrap();
        assert_eq!(settings.stale_after, Duration::from_secs(420));
        assert_eq!(settings.metrics_port, 8080);
        assert_eq!(settings.call_slots, 32);
    }

    #[test]
    fn second_names_count_where_the_first_is_unset() {
        let settings = read(&[], &[("KAGENT_API_URL", "http://a/"), ("POD_NAMESPACE", "ns")]).unwrap();
        assert_eq!(settings.kagent_base_url.as_str(), "http://a/");
        assert_eq!(settings.lease_namespace.as_deref(), Some("ns"));
        let settings = read(&[], &[("KAGENT_API_URL", "http://a"), ("KAGENT_BASE_URL", "http://b")]).unwrap();
        assert_eq!(settings.kagent_base_url.as_str(), "http://b/");
    }

    #[rstest]
    #[case("--leader-election", true)]
    #[case("--leader-election=false", false)]
    #[case("--leader-election=0", false)]
    #[case("--leader-election=Yes", true)]
    fn leader_election_is_said_in_several_ways(#[case] flag: &str, #[case] expected: bool) {
        assert_eq!(read(&[flag], &[("LEADER_ELECTION", "false")]).unwrap().leader_election, expected);
    }

    #[rstest]
    #[case("200ms", Duration::from_millis(200))]
    #[case("1.5s", Duration::from_millis(1500))]
    #[case("1h30m", Duration::from_secs(5400))]
    #[case("0s", Duration::ZERO)]
    #[case("0", Duration::ZERO)]
    #[case("999999999h", Duration::from_secs(999_999_999 * 3600))]
    #[case("500us", Duration::from_micros(500))]
    fn spans_are_read_as_kubernetes_writes_them(#[case] text: &str, #[case] expected: Duration) {
        assert_eq!(parse_duration(text), Ok(expected));
    }

    #[rstest]
    fn other_spans_are_refused_without_a_panic(
        #[values(
            "",
            "5",
            "s",
            "-5s",
            "+5s",
            "1m-5s",
            "10 m",
            "1d",
            "1e30h",
            "9999999999999999999999h",
            "inf",
            "nans",
            "1.2.3s",
            "5m ",
            "..s",
            "٣s",
            "999999999999.9s"
        )]
        text: &str,
    ) {
        assert!(parse_duration(text).is_err(), "{text}");
    }

    #[rstest]
    #[case(
        ("STALE_AFTER", "10 minutes"),
        "STALE_AFTER (--stale-after) is \"10 minutes\", but must be a span of time from 1ms to 24h, such as 200ms, 1.5s, 10m or 1h30m"
    )]
    #[case(
        ("METRICS_PORT", "http"),
        "METRICS_PORT (--metrics-port) is \"http\", but must be a whole number from 0 to 65535"
    )]
    #[case(
        ("LEADER_ELECTION", "maybe"),
        "LEADER_ELECTION (--leader-election) is \"maybe\", but must be true or false"
    )]
    #[case(("MAX_ENTRIES", "501"), "MAX_ENTRIES (--max-entries) is \"501\", but must be a whole number from 1 to 500")]
    #[case(("LOG_FORMAT", "xml"), "LOG_FORMAT (--log-format) is \"xml\", but must be auto, json or text")]
    #[case(
        ("LEASE_DURATION", "1500ms"),
        "LEASE_DURATION (--lease-duration) is \"1500ms\", but must be whole seconds from 1s to 1h, such as 15s or 2m"
    )]
    #[case(("HOLD_SCALE", "NaN"), "HOLD_SCALE (--hold-scale) is \"NaN\", but must be a number from 0 to 100")]
    #[case(
        ("BIND_ADDRESS", "localhost"),
        "BIND_ADDRESS (--bind-address) is \"localhost\", but must be an IP address such as 0.0.0.0, 127.0.0.1 or ::"
    )]
    #[case(
        ("KAGENT_BASE_URL", "ftp://me:hunter2@host"),
        "KAGENT_BASE_URL (--kagent-base-url) is \"ftp://(hidden)@host\", but must be an http or https URL without user, query and fragment"
    )]
    #[case(
        ("KAGENT_API_KEY", "hunter 2"),
        "KAGENT_API_KEY (--kagent-api-key) is (hidden), but must be a bearer token: visible ASCII without blanks"
    )]
    #[case(
        ("WATCH_NAMESPACES", "shop,team/a"),
        "WATCH_NAMESPACES (--watch-namespaces) is \"shop,team/a\", but must be names of namespaces, separated by commas; \"team/a\" is none"
    )]
    #[case(
        ("ALLOWED_AGENTS", r#"{"shop":["k8s-agent"]}"#),
        "ALLOWED_AGENTS (--allowed-agents) is \"{\\\"shop\\\":[\\\"k8s-agent\\\"]}\", but must be a JSON object of namespaces and their agents, such as {\"shop\":[\"kagent/k8s-agent\",\"./*\"],\"*\":[\"kagent/triage-*\"]}: \"k8s-agent\" is no agent: it must be NAMESPACE/NAME, ./NAME or *"
    )]
    #[case(
        ("LEASE_RENEW", "15s"),
        "LEASE_RENEW is 15s, but must be shorter than LEASE_DURATION, which is 15s"
    )]
    #[case(
        ("CALL_SLOTS", "8"),
        "CALL_SLOTS_PER_AGENT is 16, but must not be more than CALL_SLOTS, which is 8"
    )]
    #[case(
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        "OTEL_EXPORTER_OTLP_ENDPOINT (--otel-exporter-otlp-endpoint) is \"collector:4318\", but must be an http or https URL without user, query and fragment, such as http://collector:4318"
    )]
    #[case(
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://me:hunter2@host?token=x"),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT (--otel-exporter-otlp-traces-endpoint) is \"https://(hidden)@host?token=x\", but must be an http or https URL without user, query and fragment, such as http://collector:4318"
    )]
    #[case(
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer hunter2"),
        "OTEL_EXPORTER_OTLP_HEADERS (--otel-exporter-otlp-headers) is (hidden), but must be a list such as key=value,key=value, with values percent-encoded"
    )]
    #[case(
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        "OTEL_EXPORTER_OTLP_TIMEOUT (--otel-exporter-otlp-timeout) is \"10s\", but must be a whole number from 1 to 600000"
    )]
    #[case(
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        "OTEL_TRACES_SAMPLER (--otel-traces-sampler) is \"jaeger_remote\", but must be always_on, always_off, traceidratio, or one of these behind parentbased_"
    )]
    #[case(
        ("OTEL_TRACES_SAMPLER_ARG", "10%"),
        "OTEL_TRACES_SAMPLER_ARG (--otel-traces-sampler-arg) is \"10%\", but must be a number from 0 to 1"
    )]
    #[case(("RETRY_MAX", "1s"), "RETRY_BASE is 2s, but must not be longer than RETRY_MAX, which is 1s")]
    fn a_wrong_value_is_refused_in_one_sentence(#[case] setting: (&str, &str), #[case] sentence: &str) {
        assert_eq!(refusal(&[], &[setting]), sentence);
    }

    #[test]
    fn a_flag_is_refused_like_its_variable() {
        assert_eq!(refusal(&["--max-bytes=0"], &[]), refusal(&[], &[("MAX_BYTES", "0")]));
        assert!(matches!(read(&["--no-such"], &[]), Err(Error::Usage(_))));
    }

    #[test]
    fn one_credential_at_most() {
        let file = std::env::temp_dir().join(format!("khook-config-{}", std::process::id()));
        std::fs::write(&file, "token\n").unwrap();
        let path = file.to_str().unwrap();
        let settings = read(&[], &[("KAGENT_API_KEY_FILE", path)]).unwrap();
        assert_eq!(settings.credential(), Credential::File(file.clone()));
        let both = refusal(&["--kagent-api-key=abc"], &[("KAGENT_API_KEY_FILE", path)]);
        assert!(both.contains("both set") && !both.contains("abc"), "{both}");
        std::fs::write(&file, "").unwrap();
        let empty = refusal(&[], &[("KAGENT_API_KEY_FILE", path)]);
        assert!(empty.contains("must be a file with a bearer token: what is in it is empty"), "{empty}");
        std::fs::remove_file(&file).unwrap();
        assert!(refusal(&[], &[("KAGENT_API_KEY_FILE", path)]).contains("No such file"));
    }

    #[test]
    fn what_is_logged_holds_no_secret() {
        let env = [
            ("KAGENT_API_KEY", "hunter2"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2"),
            ("KAGENT_BASE_URL", "http://host:1/x/"),
            ("CLEAR_HOLD", "90s"),
        ];
        let settings = read(&[], &env).unwrap();
        let effective: Vec<_> = settings.effective().collect();
        assert!(effective.contains(&("KAGENT_API_KEY", "(hidden)")));
        assert!(effective.contains(&("KAGENT_BASE_URL", "http://host:1/x/")));
        assert!(effective.contains(&("CLEAR_HOLD", "90s")));
        assert!(effective.contains(&("LEADER_ELECTION", "true")));
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    fn traces(env: &[(&str, &str)]) -> Option<otlp::Config> {
        read(&[], env).unwrap().traces().unwrap()
    }

    #[rstest]
    #[case("http://collector:4318", "http://collector:4318/v1/traces")]
    #[case("https://collector/otlp/", "https://collector/otlp/v1/traces")]
    fn traces_go_below_the_endpoint(#[case] endpoint: &str, #[case] expected: &str) {
        let config = traces(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]).unwrap();
        assert_eq!(config.endpoint.as_str(), expected);
        assert_eq!((config.timeout, config.ratio), (Duration::from_secs(10), 1.0));
        let name = |key: &str| config.resource.get(key).map(String::as_str);
        assert_eq!(
            (name("service.name"), name("service.version")),
            (Some("khook"), Some(env!("CARGO_PKG_VERSION")))
        );
    }

    #[test]
    fn there_are_no_traces_unless_asked_for() {
        assert!(traces(&[]).is_none());
        // What is there for everybody in a cluster does not stop who has no traces.
        assert!(traces(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).is_none());
        for off in [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "TRUE")] {
            assert!(traces(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"), off]).is_none(), "{off:?}");
        }
    }

    #[test]
    fn settings_of_traces_win_over_common_ones() {
        let config = traces(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://common:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4318/here"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=Bearer%20hunter2, x-b = 2"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,deployment.environment.name=test%2C1"),
            ("OTEL_SERVICE_NAME", "b"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ])
        .unwrap();
        assert_eq!(config.endpoint.as_str(), "http://traces:4318/here");
        assert_eq!(
            (config.headers.len(), &config.headers["authorization"]),
            (2, &HeaderValue::from_static("Bearer hunter2"))
        );
        assert_eq!((config.timeout, config.ratio), (Duration::from_millis(250), 0.25));
        let expected = [
            ("deployment.environment.name", "test,1"),
            ("service.name", "b"),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ];
        assert_eq!(config.resource, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn grpc_is_refused_where_there_are_traces() {
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        let sentence = "OTEL_EXPORTER_OTLP_PROTOCOL (--otel-exporter-otlp-protocol) is \"grpc\", but must be http/protobuf, which collectors take on port 4318 (4317 is for gRPC)";
        assert_eq!(refusal(&[], &env), sentence);
    }

    #[test]
    fn help_names_the_variables() {
        let help = Settings::command().render_long_help().to_string();
        assert!(help.contains("[env: KAGENT_BASE_URL, KAGENT_API_URL]"), "{help}");
        assert!(help.contains("[env: STALE_AFTER]"));
    }
}
