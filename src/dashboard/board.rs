//! A board is what the page and the API show at one moment; a hub tells its readers how one becomes the next.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::body::Bytes;
use chrono::{NaiveDate, Utc};
use kube::runtime::reflector::Store;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::{
    sync::{broadcast, watch},
    time,
};
use uuid::Uuid;

use super::{
    api,
    feed::{Feed, News, State},
    page,
};
use crate::{
    hook::Hook,
    view::{self, AgentView, HookView, Incident},
};

/// Shortest time between two boards: what changes faster is told together.
const PACE: Duration = Duration::from_millis(250);

/// How often it is looked whether another day has begun.
const TICK: Duration = Duration::from_secs(60);

/// Changes kept for a reader that is slow; with one more it must begin anew.
const BACKLOG: usize = 64;

/// Something that is shown.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "kind", content = "object", rename_all = "lowercase")]
pub enum Item {
    /// An incident.
    Incident(Box<Incident>),
    /// A Hook.
    Hook(Box<HookView>),
    /// An agent.
    Agent(Box<AgentView>),
}

/// The name of an item: its kind, and its key among those of its kind.
pub type Id = (&'static str, String);

impl Item {
    /// Its name.
    pub fn id(&self) -> Id {
        match self {
            Self::Incident(incident) => ("incident", incident.key()),
            Self::Hook(hook) => ("hook", format!("{}/{}", hook.namespace, hook.name)),
            Self::Agent(agent) => ("agent", agent.name.clone()),
        }
    }
}

/// All that is shown at one moment.
#[derive(Clone, Debug)]
pub struct Board {
    /// Another for every board, and for those of another process.
    pub version: String,
    /// What is shown, by name.
    pub items: BTreeMap<Id, Item>,
    /// How well it is known.
    pub state: State,
    /// Which day it is; what a Hook costs is shown by day.
    pub today: NaiveDate,
}

impl Board {
    /// The board of these Hooks.
    pub fn of(hooks: &[Arc<Hook>], state: State, today: NaiveDate) -> Self {
        let views: Vec<HookView> = hooks.iter().map(|hook| HookView::of(hook)).collect();
        let incidents: Vec<Incident> = hooks.iter().flat_map(|hook| view::incidents(hook)).collect();
        let agents = view::agents(&views, &incidents).into_iter().map(|agent| Item::Agent(agent.into()));
        let incidents = incidents.into_iter().map(|incident| Item::Incident(incident.into()));
        let hooks = views.into_iter().map(|hook| Item::Hook(hook.into()));
        let items = agents.chain(incidents).chain(hooks).map(|item| (item.id(), item)).collect();
        Self { version: String::new(), items, state, today }
    }

    /// How this board becomes the next.
    fn changes(&self, next: &Self) -> (Vec<Item>, Vec<Id>) {
        let another_day = self.today != next.today;
        let is_old = |id: &Id, item: &Item| {
            self.items.get(id) == Some(item) && !(another_day && matches!(item, Item::Hook(_)))
        };
        let new = next.items.iter().filter(|(id, item)| !is_old(id, item)).map(|(_, item)| item.clone());
        let gone = self.items.keys().filter(|id| !next.items.contains_key(*id)).cloned();
        (new.collect(), gone.collect())
    }

    /// The incidents.
    pub fn incidents(&self) -> impl Iterator<Item = &Incident> {
        self.items.values().filter_map(|item| match item {
            Item::Incident(incident) => Some(&**incident),
            _ => None,
        })
    }

    /// The Hooks.
    pub fn hooks(&self) -> impl Iterator<Item = &HookView> {
        self.items.values().filter_map(|item| match item {
            Item::Hook(hook) => Some(&**hook),
            _ => None,
        })
    }

    /// The agents.
    pub fn agents(&self) -> impl Iterator<Item = &AgentView> {
        self.items.values().filter_map(|item| match item {
            Item::Agent(agent) => Some(&**agent),
            _ => None,
        })
    }
}

/// How one board became another.
#[derive(Debug)]
pub struct Changes {
    /// What is new, or not as it was.
    pub new: Vec<Item>,
    /// What is gone.
    pub gone: Vec<Id>,
    /// The board after it, for its version and state.
    pub board: Arc<Board>,
    /// Written once, for whichever reader asks first.
    page: OnceLock<Bytes>,
    api: OnceLock<Bytes>,
}

/// Who reads a stream: both are told the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The page, which is sent pieces of itself.
    Page,
    /// Programs, which are sent objects.
    Api,
}

impl Reader {
    /// The whole board, in this reader's form.
    pub fn snapshot(self, board: &Board) -> Bytes {
        match self {
            Self::Page => page::snapshot(board),
            Self::Api => api::snapshot(board),
        }
    }

    /// The changes, in this reader's form.
    pub fn changes(self, changes: &Changes) -> Bytes {
        match self {
            Self::Page => changes.page.get_or_init(|| page::changes(changes)),
            Self::Api => changes.api.get_or_init(|| api::changes(changes)),
        }
        .clone()
    }
}

/// Where readers are told.
pub struct Hub {
    hooks: Store<Hook>,
    news: watch::Receiver<News>,
    /// There only while somebody reads.
    board: Mutex<Option<Arc<Board>>>,
    readers: broadcast::Sender<Arc<Changes>>,
    /// Of this process.
    epoch: Uuid,
    boards: std::sync::atomic::AtomicU64,
}

impl Hub {
    /// A hub of the Hooks in this store.
    pub fn new(hooks: Store<Hook>, feed: &Feed) -> Self {
        Self {
            hooks,
            news: feed.subscribe(),
            board: Mutex::default(),
            readers: broadcast::Sender::new(BACKLOG),
            epoch: Uuid::new_v4(),
            boards: Default::default(),
        }
    }

    /// One Hook.
    pub fn hook(&self, namespace: &str, name: &str) -> Option<Arc<Hook>> {
        self.hooks.get(&kube::runtime::reflector::ObjectRef::new(name).within(namespace))
    }

    /// The board as it is.
    pub fn board(&self) -> Arc<Board> {
        self.board.lock().get_or_insert_with(|| self.look()).clone()
    }

    /// The board as it is, and whatever changes from then on.
    pub fn subscribe(&self) -> (Arc<Board>, broadcast::Receiver<Arc<Changes>>) {
        let mut board = self.board.lock();
        (board.get_or_insert_with(|| self.look()).clone(), self.readers.subscribe())
    }

    /// Tells readers of changes, for ever.
    pub async fn publish(&self) {
        let mut news = self.news.clone();
        loop {
            // A tick, too, is a time to look.
            if let Ok(Err(_)) = time::timeout(TICK, news.changed()).await {
                return;
            }
            self.refresh();
            time::sleep(PACE).await;
        }
    }

    fn refresh(&self) {
        let mut slot = self.board.lock();
        let Some(board) = slot.take_if(|_| self.readers.receiver_count() > 0) else {
            *slot = None;
            return;
        };
        let next = self.look();
        let (new, gone) = board.changes(&next);
        if new.is_empty() && gone.is_empty() && board.state == next.state {
            *slot = Some(board);
            return;
        }
        *slot = Some(next.clone());
        let (page, api) = Default::default();
        // Nobody listens: the last one has just left.
        let _ = self.readers.send(Arc::new(Changes { new, gone, board: next, page, api }));
    }

    fn look(&self) -> Arc<Board> {
        let state = self.news.borrow().state();
        let number = self.boards.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let board = Board::of(&self.hooks.state(), state, Utc::now().date_naive());
        Arc::new(Board { version: format!("{}-{number}", self.epoch.simple()), ..board })
    }
}
