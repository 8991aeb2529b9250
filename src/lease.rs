//! Leadership is the right of one replica to work while the others stand by, kept as a Lease.
//!
//! It saves work; it does not carry safety (claims do). It speaks Kubernetes' Lease protocol as
//! client-go does: whoever is named in `holderIdentity` leads and renews `renewTime`; another may
//! take over once it has itself watched the Lease stand still for `leaseDurationSeconds` on its own
//! monotonic clock, so that no two machines' clocks are compared. Every write carries the
//! resourceVersion that was read, so of two who try at a time one gets a conflict.
//!
//! Why not kube-lease-manager: it judges expiry by the holder's wall clock, clears an expired
//! holder without a resourceVersion (and may clear its successor), sleeps until expiry though the
//! Lease was released, and goes on reporting leadership while it cannot renew. To work around these
//! is more than the protocol itself.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, task::JoinHandle, time};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::sabotage::{Safeguard, without};

/// How often a standby looks at the Lease, and a leader tries again after a failed renewal: the
/// time within which a released Lease finds its next holder.
const LOOK: Duration = Duration::from_secs(1);

/// Longest time to wait for the apiserver when the Lease is given back.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Terms of leadership.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Name of the Lease.
    pub name: String,
    /// Who this process is; no other process may be the same at a time.
    pub identity: String,
    /// How long leadership lasts without renewal; whole seconds.
    pub duration: Duration,
    /// How often the leader renews; shorter than the duration.
    pub renew: Duration,
}

/// A candidacy for leadership, or the certainty of it.
pub struct Leadership {
    leads: watch::Receiver<bool>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Leadership {
    /// Leads from the start and for ever; no Lease is touched.
    pub fn always() -> Self {
        let (sender, leads) = watch::channel(true);
        let stop = CancellationToken::new();
        let released = stop.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            released.await;
            sender.send_replace(false);
        });
        Self { leads, stop, task }
    }

    /// Stands for election until [`release`](Self::release). `api` must bound its requests by
    /// itself; `beat` is called at least once in a [`Terms::renew`] or a request's time.
    pub fn stand(api: Api<Lease>, terms: Terms, beat: impl Fn() + Send + Sync + 'static) -> Self {
        let (sender, leads) = watch::channel(false);
        let stop = CancellationToken::new();
        let task = tokio::spawn(campaign(api, terms, sender, stop.clone(), beat));
        Self { leads, stop, task }
    }

    /// Whether this process leads, and its changes. It turns false by itself when the Lease could not
    /// be renewed for its duration, whatever the reason. The channel closes when it was released.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// Gives leadership back: at once here, and as soon as the apiserver answers for the next
    /// leader. Waits for no longer than [`RELEASE_TIMEOUT`].
    pub async fn release(self) {
        self.stop.cancel();
        // An error is a panic in there, which was reported; there is nothing left to release.
        let _ = self.task.await;
    }
}

/// A name for this process. A pod's name outlives its containers and belongs to one process at a
/// time, so a restarted container leads again at once; elsewhere each process gets a name of its own.
pub fn identity(pod_name: Option<&str>) -> String {
    pod_name.map_or_else(|| format!("khook-{}", Uuid::new_v4()), str::to_owned)
}

/// What to write into the Lease.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Nothing: another leads.
    Wait,
    /// Create it: there is none.
    Create,
    /// Take it: nobody holds it, or its holder has been silent for too long.
    Take,
    /// Renew it: it is ours.
    Renew,
}

/// What one candidate knows. Pure: time is an argument.
#[derive(Debug)]
struct Election {
    identity: String,
    duration: Duration,
    /// The Lease as last seen in another's hands, and since when it has not changed.
    other: Option<(LeaseSpec, Instant)>,
    /// When our own leadership ends unless it is renewed; none where we do not lead.
    until: Option<Instant>,
}

impl Election {
    fn new(identity: String, duration: Duration) -> Self {
        Self { identity, duration, other: None, until: None }
    }

    /// Ends our own leadership, if it was not renewed until `now`; says whether it did.
    fn lapse(&mut self, now: Instant) -> bool {
        self.until.take_if(|until| now >= *until).is_some()
    }

    /// What to do about the Lease as it was just read.
    fn read(&mut self, lease: Option<&LeaseSpec>, now: Instant) -> Step {
        let Some(spec) = lease else { return Step::Create };
        match spec.holder_identity.as_deref() {
            Some(holder) if holder == self.identity => Step::Renew,
            None | Some("") => Step::Take,
            Some(_) => {
                // Whoever took it did so by the rules: ours is over.
                self.until = None;
                match &self.other {
                    Some((seen, since))
                        if seen == spec && now >= *since + self.term(spec) && !without(Safeguard::Lease) =>
                    {
                        Step::Take
                    }
                    Some((seen, _)) if seen == spec => Step::Wait,
                    _ => {
                        self.other = Some((spec.clone(), now));
                        Step::Wait
                    }
                }
            }
        }
    }

    /// Our write, sent at `sent`, is stored: whoever sees it now waits from a later moment than we count from.
    fn wrote(&mut self, sent: Instant) {
        self.other = None;
        self.until = Some(sent + self.duration);
    }

    /// When the Lease in another's hands may be taken, if it does not change.
    fn vacant_at(&self) -> Option<Instant> {
        self.other.as_ref().map(|(spec, since)| *since + self.term(spec))
    }

    /// The time its holder asked for; ours where it did not say.
    fn term(&self, spec: &LeaseSpec) -> Duration {
        let asked = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        asked.filter(|seconds| *seconds > 0).map_or(self.duration, Duration::from_secs)
    }

    /// The Lease with us as its holder.
    fn held(&self, before: Option<&LeaseSpec>, step: Step, now: Timestamp) -> LeaseSpec {
        let mut spec = before.cloned().unwrap_or_default();
        if step != Step::Renew {
            let transitions = spec.lease_transitions.unwrap_or(0);
            spec.lease_transitions = Some(transitions.saturating_add(i32::from(step == Step::Take)));
            spec.acquire_time = Some(MicroTime(now));
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = i32::try_from(self.duration.as_secs()).ok();
        spec.renew_time = Some(MicroTime(now));
        spec
    }
}

/// Stands for election, leads, and stands again, until `stop`.
async fn campaign(
    api: Api<Lease>,
    terms: Terms,
    leads: watch::Sender<bool>,
    stop: CancellationToken,
    beat: impl Fn() + Send + Sync,
) {
    let mut election = Election::new(terms.identity.clone(), terms.duration);
    let mut trouble = None;
    let mut holder = None;
    while !stop.is_cancelled() {
        beat();
        let read = tokio::select! {
            () = stop.cancelled() => break,
            // A request that hangs must not keep leadership alive.
            () = at(election.until) => None,
            read = turn(&api, &terms.name, &mut election) => match read {
                Ok(read) => {
                    trouble = None;
                    read
                }
                Err(error) => {
                    // Said once, not every second.
                    let text = Some(error.to_string());
                    if trouble != text {
                        tracing::warn!(lease = terms.name, %error, "cannot read or write the lease");
                        trouble = text;
                    }
                    None
                }
            },
        };
        let now = Instant::now();
        if election.lapse(now) {
            tracing::warn!(lease = terms.name, "the lease could not be renewed in time");
        }
        let renewed = election.until.is_some() && read.is_some();
        holder = read.map_or(holder, |spec| spec.holder_identity);
        announce(&leads, election.until.is_some(), holder.as_deref(), &terms);
        let next = match renewed {
            true => now + terms.renew,
            false => election.vacant_at().filter(|at| *at > now).unwrap_or(now + LOOK).min(now + LOOK),
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = at(Some(next)) => {}
            // The next turn finds it lapsed, and says so.
            () = at(election.until) => {}
        }
    }
    announce(&leads, false, None, &terms);
    // Also where it is not held: the write that takes it may be under way.
    match time::timeout(RELEASE_TIMEOUT, release(&api, &terms)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(lease = terms.name, %error, "cannot release the lease: it will run out")
        }
        Err(_) => tracing::warn!(lease = terms.name, "no time to release the lease: it will run out"),
    }
}

/// Reads the Lease and does what there is to do. Answers with the Lease as it is now, or with
/// nothing where another was faster.
async fn turn(
    api: &Api<Lease>,
    name: &str,
    election: &mut Election,
) -> Result<Option<LeaseSpec>, kube::Error> {
    let lease = api.get_opt(name).await?;
    let before = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
    let sent = Instant::now();
    let step = election.read(before.as_ref(), sent);
    if step == Step::Wait {
        return Ok(before);
    }
    let spec = Some(election.held(before.as_ref(), step, Timestamp::now()));
    let written = match lease {
        // With the resourceVersion that was read: a change in between is a conflict.
        Some(lease) => api.replace(name, &PostParams::default(), &Lease { spec, ..lease }).await,
        None => {
            let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
            api.create(&PostParams::default(), &Lease { metadata, spec }).await
        }
    };
    match written {
        Ok(lease) => {
            election.wrote(sent);
            Ok(Some(lease.spec.unwrap_or_default()))
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Clears the holder, if it is us.
async fn release(api: &Api<Lease>, terms: &Terms) -> Result<(), kube::Error> {
    loop {
        let Some(mut lease) = api.get_opt(&terms.name).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() != Some(&terms.identity) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        match api.replace(&terms.name, &PostParams::default(), &lease).await {
            // Our own last renewal came in between.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => return other.map(drop),
        }
    }
}

fn announce(sender: &watch::Sender<bool>, leads: bool, holder: Option<&str>, terms: &Terms) {
    if sender.send_if_modified(|before| std::mem::replace(before, leads) != leads) {
        tracing::info!(lease = terms.name, identity = terms.identity, leads, holder, "leadership changed");
    }
}

/// Ends at `at`; never where there is none.
async fn at(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(15);
    const SECOND: Duration = Duration::from_secs(1);

    fn election() -> Election {
        Election::new("me".into(), TERM)
    }

    fn held_by(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(10),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_that_is_missing_or_free_is_taken() {
        let now = Instant::now();
        assert_eq!(election().read(None, now), Step::Create);
        assert_eq!(election().read(Some(&LeaseSpec::default()), now), Step::Take);
        assert_eq!(election().read(Some(&held_by("", 0)), now), Step::Take);
    }

    #[test]
    fn our_own_lease_is_renewed_also_after_a_restart() {
        assert_eq!(election().read(Some(&held_by("me", 0)), Instant::now()), Step::Renew);
    }

    #[test]
    fn another_holder_is_followed_only_after_it_was_seen_to_stand_still() {
        let (mut election, start) = (election(), Instant::now());
        // Its wall clock says it ran out long ago; that does not count.
        assert_eq!(election.read(Some(&held_by("other", 0)), start), Step::Wait);
        assert_eq!(election.read(Some(&held_by("other", 0)), start + 9 * SECOND), Step::Wait);
        assert_eq!(election.vacant_at(), Some(start + 10 * SECOND));
        assert_eq!(election.read(Some(&held_by("other", 5)), start + 10 * SECOND), Step::Wait);
        assert_eq!(election.read(Some(&held_by("other", 5)), start + 19 * SECOND), Step::Wait);
        assert_eq!(election.read(Some(&held_by("third", 5)), start + 20 * SECOND), Step::Wait);
        assert_eq!(election.read(Some(&held_by("third", 5)), start + 30 * SECOND), Step::Take);
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let (mut election, start) = (election(), Instant::now());
        assert_eq!(election.read(Some(&held_by("other", 0)), start), Step::Wait);
        let free = LeaseSpec { holder_identity: None, ..held_by("other", 1) };
        assert_eq!(election.read(Some(&free), start + SECOND), Step::Take);
    }

    #[test]
    fn leadership_ends_by_itself_a_duration_after_the_last_renewal_was_sent() {
        let (mut election, start) = (election(), Instant::now());
        assert!(election.until.is_none());
        election.wrote(start);
        assert!(!election.lapse(start + TERM - Duration::from_millis(1)));
        assert!(election.until.is_some());
        assert!(election.lapse(start + TERM));
        assert!(election.until.is_none());
        election.wrote(start + 20 * SECOND);
        assert_eq!(election.until, Some(start + 35 * SECOND));
    }

    #[test]
    fn leadership_ends_at_the_sight_of_another_holder() {
        let (mut election, start) = (election(), Instant::now());
        election.wrote(start);
        assert_eq!(election.read(Some(&held_by("other", 0)), start + SECOND), Step::Wait);
        assert!(election.until.is_none());
    }

    #[test]
    fn a_lease_without_a_duration_is_waited_for_with_our_own() {
        let (mut election, start) = (election(), Instant::now());
        let silent = LeaseSpec { lease_duration_seconds: None, ..held_by("other", 0) };
        election.read(Some(&silent), start);
        assert_eq!(election.vacant_at(), Some(start + TERM));
        let broken = LeaseSpec { lease_duration_seconds: Some(-1), ..silent };
        election.read(Some(&broken), start);
        assert_eq!(election.vacant_at(), Some(start + TERM));
    }

    #[test]
    fn what_is_written_follows_the_protocol() {
        let now = Timestamp::from_second(99).unwrap();
        let taken = election().held(Some(&held_by("other", 0)), Step::Take, now);
        assert_eq!(taken.holder_identity.as_deref(), Some("me"));
        assert_eq!(taken.lease_transitions, Some(5));
        assert_eq!(taken.lease_duration_seconds, Some(15));
        assert_eq!(taken.acquire_time, Some(MicroTime(now)));
        let later = Timestamp::from_second(104).unwrap();
        let renewed = election().held(Some(&taken), Step::Renew, later);
        assert_eq!(renewed, LeaseSpec { renew_time: Some(MicroTime(later)), ..taken });
        assert_eq!(election().held(None, Step::Create, now).lease_transitions, Some(0));
    }

    #[tokio::test]
    async fn without_an_election_it_leads_until_it_stops() {
        let leadership = Leadership::always();
        let mut leads = leadership.watch();
        assert!(*leads.borrow_and_update());
        leadership.release().await;
        assert!(!*leads.borrow());
    }

    #[test]
    fn processes_without_a_pod_are_never_the_same() {
        assert_eq!(identity(Some("khook-7d4-x")), "khook-7d4-x");
        assert_ne!(identity(None), identity(None));
    }
}
