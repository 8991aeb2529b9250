//! A fault point is a place in a run and what breaks there: the third status write, and its answer is lost.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize, de::Error as _};

/// What a request asks for, or what a watch tells. Each is counted by itself, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A write of a Hook's status.
    Status,
    /// A read or write of the Lease.
    Lease,
    /// A write of an Event.
    Notice,
    /// A Hook is read back.
    ReadHook,
    /// A pod is asked for.
    ReadPod,
    /// The recent Events of a namespace are listed.
    Recent,
    /// All Hooks are listed.
    ListHooks,
    /// All pods are listed.
    ListPods,
    /// All Events are listed.
    ListEvents,
    /// A line of the watch of Hooks.
    WatchHooks,
    /// A line of the watch of pods.
    WatchPods,
    /// A line of the watch of Warnings.
    WatchEvents,
    /// A line of the watch of kubelet's ends of containers.
    WatchKills,
    /// A Secret is read.
    Secret,
    /// An agent's card is read.
    Card,
    /// A session is opened at the agent.
    Session,
    /// A message is sent.
    Send,
    /// A session's tasks are read, or a conversation's at the agent itself.
    Lookup,
    /// A task is looked at.
    Follow,
    /// Anything else.
    Other,
}

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// The connection is reset before the server has the request.
    Drop,
    /// The server does it, and the answer is lost.
    LoseAnswer,
    /// 409 without asking the server.
    Conflict,
    /// 429 with Retry-After: 1.
    Busy,
    /// 500.
    Fail,
    /// 503.
    Away,
    /// It waits 700 ms on its way to the server.
    Delay,
    /// The server never has it, and there is no answer.
    Hang,
    /// The server does it, and there is no answer.
    HangAfter,
    /// The server does it, and half of the answer comes.
    Truncate,
    /// The server does it, and what comes is no JSON.
    Garbage,
    /// The server does it, and the answer has no end.
    Huge,

    /// The watch is cut.
    Cut,
    /// 410: the version is too old.
    Expire,
    /// The line never comes; a little later the watch has to begin anew, as one that fell behind.
    Swallow,
    /// Everything comes once more.
    Replay,
    /// Nothing comes for 3 s.
    Freeze,
    /// A line that is no JSON.
    Scramble,

    /// SIGKILL before the server has the request; a new process 150 ms later.
    KillBefore,
    /// SIGKILL once the server has done it.
    KillAfter,
    /// SIGSTOP once the server has done it, until the Lease is long over.
    Pause,
    /// SIGKILL once the server has done it, for good: another replica has to go on.
    Die,

    /// The Hook is suspended for a while.
    Suspend,
    /// The Hook is suspended while the request takes its time.
    SuspendMeanwhile,
    /// The configuration is removed while the request takes its time.
    RemoveMeanwhile,
    /// The Hook is deleted while the request takes its time, and there is a new one of its name.
    RecreateMeanwhile,
    /// The prompt is changed.
    Edit,
    /// The configuration is removed, and is back after a while.
    Remove,
    /// The Hook is deleted, and there is a new one of its name at once.
    Recreate,
    /// The namespace is deleted with all in it.
    Terminate,
    /// Somebody writes a field of the status.
    Meddle,
    /// Somebody empties the list of incidents.
    Wipe,
    /// khook's rights in the namespace are taken away for a while.
    Revoke,
    /// Somebody else takes the Lease, and does not renew it.
    StealLease,
    /// The Lease is deleted.
    DeleteLease,

    /// kube-apiserver is killed and started again.
    RestartApiserver,
    /// etcd is killed and started again.
    RestartEtcd,
    /// etcd forgets all old versions.
    Compact,
    /// The agent forgets every task.
    Forget,
}

use Class::*;
use Deed::*;

impl Deed {
    /// Whether it happens before the server has the request, or in its place.
    pub fn comes_first(self) -> bool {
        matches!(
            self,
            Drop | Conflict
                | Busy
                | Fail
                | Away
                | Delay
                | Hang
                | KillBefore
                | SuspendMeanwhile
                | RemoveMeanwhile
                | RecreateMeanwhile
        )
    }

    /// Whether it breaks the control plane itself, for all who use it.
    pub fn breaks_control_plane(self) -> bool {
        matches!(self, RestartApiserver | RestartEtcd | Compact)
    }

    /// Whether a user took back what the scenario had asked for: an incident may then end without a call.
    pub fn takes_back(self) -> bool {
        matches!(self, Suspend | SuspendMeanwhile | Remove | RemoveMeanwhile | Terminate)
    }
}

/// The fault points of one place.
struct Places {
    class: Class,
    /// Up to which number.
    most: u32,
    deeds: &'static [Deed],
}

/// What can break where. The numbers end where a scenario has no more of a class.
const CATALOG: &[Places] = &[
    Places {
        class: Status,
        most: 7,
        deeds: &[Drop, LoseAnswer, Conflict, Busy, Fail, Delay, Truncate, KillBefore, KillAfter],
    },
    Places { class: Status, most: 3, deeds: &[Hang, HangAfter, Garbage] },
    Places { class: Status, most: 4, deeds: &[Suspend, Edit, Remove, Recreate, Meddle, Wipe, Revoke, Pause] },
    Places { class: Status, most: 4, deeds: &[Die] },
    Places { class: Status, most: 2, deeds: &[Terminate, RestartApiserver, RestartEtcd, Compact] },
    Places { class: Lease, most: 4, deeds: &[Drop, LoseAnswer, Conflict, Fail, Truncate] },
    Places {
        class: Lease,
        most: 2,
        deeds: &[StealLease, DeleteLease, Hang, HangAfter, KillBefore, KillAfter],
    },
    Places { class: Notice, most: 1, deeds: &[Drop, Fail, Truncate, Busy] },
    Places { class: Notice, most: 2, deeds: &[KillBefore, KillAfter] },
    Places { class: ReadHook, most: 1, deeds: &[Drop, Fail, Truncate] },
    Places { class: ReadPod, most: 2, deeds: &[Drop, Fail, Truncate, Busy] },
    Places { class: Recent, most: 2, deeds: &[Drop, Fail, Truncate, Garbage, KillAfter] },
    Places { class: ListHooks, most: 1, deeds: &[Drop, Fail, Truncate, Garbage] },
    Places { class: ListEvents, most: 1, deeds: &[Drop, Fail, Truncate] },
    Places { class: WatchHooks, most: 3, deeds: &[Cut, Expire, Swallow, Replay, Freeze, Scramble] },
    Places { class: WatchEvents, most: 3, deeds: &[Cut, Expire, Swallow, Replay, Freeze, Scramble] },
    Places { class: WatchPods, most: 4, deeds: &[Cut, Expire, Swallow, Replay, Freeze, Scramble] },
    Places {
        class: Session,
        most: 3,
        deeds: &[
            Drop, LoseAnswer, Busy, Fail, Away, Delay, Truncate, Garbage, KillBefore, KillAfter, Suspend,
        ],
    },
    Places {
        class: Session,
        most: 2,
        deeds: &[SuspendMeanwhile, RemoveMeanwhile, RecreateMeanwhile, Remove, Pause, Die],
    },
    Places { class: Session, most: 1, deeds: &[Hang, HangAfter, Huge] },
    Places {
        class: Send,
        most: 3,
        deeds: &[Drop, LoseAnswer, Busy, Fail, Away, Delay, Truncate, Garbage, KillBefore, KillAfter],
    },
    Places {
        class: Send,
        most: 2,
        deeds: &[Hang, HangAfter, Huge, Suspend, Edit, Remove, Recreate, Revoke, Wipe, Pause, Forget, Die],
    },
    Places { class: Send, most: 1, deeds: &[RestartApiserver, RestartEtcd] },
    Places { class: Secret, most: 3, deeds: &[Drop, Fail, Truncate, Garbage, Hang, KillBefore, KillAfter] },
    Places { class: Secret, most: 3, deeds: &[SuspendMeanwhile, RemoveMeanwhile, RecreateMeanwhile, Revoke] },
    Places {
        class: Card,
        most: 2,
        deeds: &[
            Drop, LoseAnswer, Busy, Fail, Away, Delay, Truncate, Garbage, Huge, Hang, KillBefore, KillAfter,
        ],
    },
    Places {
        class: Card,
        most: 2,
        deeds: &[Suspend, Remove, SuspendMeanwhile, RemoveMeanwhile, RecreateMeanwhile, Pause],
    },
    Places { class: ListPods, most: 1, deeds: &[Drop, Fail, Truncate] },
    Places { class: WatchKills, most: 1, deeds: &[Cut, Expire, Scramble] },
    Places { class: Follow, most: 2, deeds: &[Drop, Fail, Truncate, Garbage, KillBefore, KillAfter, Forget] },
    Places { class: Follow, most: 1, deeds: &[Hang, Huge, Away] },
];

/// What can break in a lookup, of which there is none unless something broke before.
const LOOKUP: &[Deed] = &[Drop, LoseAnswer, Busy, Fail, Truncate, Garbage, Hang, KillBefore, KillAfter];

/// Where, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The replica it befalls; 0 is the first.
    pub replica: usize,
    /// The kind of request.
    pub class: Class,
    /// Which of them, from 1.
    pub nth: u32,
    /// What breaks.
    pub deed: Deed,
}

/// The points that a scenario of so many replicas can reach which had so many requests of each class without
/// any fault.
pub fn points(counts: &BTreeMap<Class, u32>, replicas: usize) -> Vec<Point> {
    let mut points = Vec::new();
    for Places { class, most, deeds } in CATALOG {
        let had = counts.get(class).copied().unwrap_or_default();
        for nth in 1..=had.min(*most) {
            let possible = deeds.iter().filter(|deed| replicas > 1 || **deed != Die);
            points.extend(possible.map(|deed| Point { replica: 0, class: *class, nth, deed: *deed }));
        }
    }
    points
}

/// Pairs of which the first makes way for the second: a lookup, and what breaks in it or on the way to it.
pub fn pairs(counts: &BTreeMap<Class, u32>) -> Vec<Vec<Point>> {
    let of = |class, nth, deed| Point { replica: 0, class, nth, deed };
    let mut places = Vec::new();
    if counts.contains_key(&Send) {
        places.push((Lookup, 1));
    }
    // It is read anew then.
    if let Some(read) = counts.get(&Card) {
        places.push((Card, read + 1));
    }
    let pair =
        |(class, nth)| LOOKUP.iter().map(move |deed| vec![of(Send, 1, LoseAnswer), of(class, nth, *deed)]);
    places.into_iter().flat_map(pair).collect()
}

impl Class {
    /// Whether it is a line of a watch.
    pub fn is_watch(self) -> bool {
        matches!(self, WatchHooks | WatchPods | WatchEvents | WatchKills)
    }
}

// The words are serde's: `status`, `lose-answer`.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn read<T: for<'a> Deserialize<'a>>(text: &str) -> Option<T> {
    serde_json::from_value(text.into()).ok()
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&word(self))
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&word(self))
    }
}

/// `status:3:lose-answer`; with `@1` behind it for the second replica.
impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.class, self.nth, self.deed)?;
        if self.replica > 0 { write!(f, "@{}", self.replica) } else { Ok(()) }
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, replica) = text.split_once('@').unwrap_or((text, "0"));
        let parsed = match place.split(':').collect::<Vec<_>>()[..] {
            [class, nth, deed] => {
                let nth = nth.parse().ok().filter(|nth| *nth > 0);
                read(class).zip(nth).zip(read(deed)).zip(replica.parse().ok())
            }
            _ => None,
        };
        let (((class, nth), deed), replica) = parsed.ok_or_else(|| {
            let mut classes: Vec<String> = CATALOG.iter().map(|places| places.class.to_string()).collect();
            let mut deeds: Vec<String> =
                CATALOG.iter().flat_map(|places| places.deeds).map(Deed::to_string).collect();
            classes.dedup();
            deeds.sort();
            deeds.dedup();
            format!(
                "\"{text}\" is no fault point: write CLASS:NUMBER:WHAT, as in status:3:lose-answer, with a class of \
                 {} and one of {}; numbers begin at 1",
                classes.join(", "),
                deeds.join(", ")
            )
        })?;
        Ok(Self { replica, class, nth, deed })
    }
}

impl Serialize for Point {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_written_as_it_is_read() {
        let counts = BTreeMap::from([(Status, 9), (Send, 1), (WatchPods, 2)]);
        let points = points(&counts, 2);
        assert!(points.len() > 100, "{}", points.len());
        for point in points {
            let second = Point { replica: 1, ..point };
            assert_eq!(point.to_string().parse(), Ok(point));
            assert_eq!(second.to_string().parse(), Ok(second));
        }
        assert!("status:3".parse::<Point>().is_err());
        assert!("status:x:drop".parse::<Point>().is_err());
        assert!("nothing:1:drop".parse::<Point>().is_err());
    }
}
