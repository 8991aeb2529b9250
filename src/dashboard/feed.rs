//! A feed tells that the Hooks in a store have changed, and how well they are known.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use kube::runtime::watcher;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;

/// Hears from watches of Hooks, and wakes whoever shows them.
pub struct Feed {
    news: watch::Sender<News>,
}

/// How it stands with the watches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// Grows with every change of a Hook.
    pub version: u64,
    /// Watches whose first list has come.
    listed: BTreeMap<String, bool>,
    /// Watches that do not work at present.
    broken: BTreeMap<String, Broken>,
}

/// How well the Hooks are known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Whether all Hooks have been listed once: before that some may be missing.
    pub listed: bool,
    /// Watches that do not work at present: what they look at is shown as it was when they broke off.
    pub broken: Vec<Broken>,
}

/// A watch that does not work.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Broken {
    /// Its name: `hooks`, or `hooks of NAMESPACE`.
    pub watch: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// What the apiserver said last, or that it did not.
    pub error: String,
}

impl Feed {
    /// A feed that hears from the watches of these names.
    pub fn new(watches: impl IntoIterator<Item = String>) -> Self {
        let listed = watches.into_iter().map(|watch| (watch, false)).collect();
        Self { news: watch::Sender::new(News { listed, ..News::default() }) }
    }

    /// The store has changed.
    pub fn changed(&self) {
        self.news.send_modify(|news| news.version += 1);
    }

    /// A watch has brought something, or broke off.
    pub fn note<K>(&self, watch: &str, item: &watcher::Result<watcher::Event<K>>) {
        self.news.send_if_modified(|news| match item {
            Ok(watcher::Event::InitDone) => {
                let before = news.listed.insert(watch.to_owned(), true);
                news.broken.remove(watch).is_some() || before != Some(true)
            }
            Ok(_) => news.broken.remove(watch).is_some(),
            Err(error) => {
                let since = news.broken.get(watch).map_or_else(Utc::now, |broken| broken.since);
                let broken = Broken { watch: watch.to_owned(), since, error: error.to_string() };
                news.broken.insert(watch.to_owned(), broken.clone()) != Some(broken)
            }
        });
    }

    /// A request of a watch has been answered. From a quiet cluster a watch brings nothing more.
    pub fn answered(&self, watch: &str) {
        self.news.send_if_modified(|news| news.broken.remove(watch).is_some());
    }

    /// Wakes with every change.
    pub fn subscribe(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }
}

impl News {
    /// How well the Hooks are known.
    pub fn state(&self) -> State {
        State {
            listed: self.listed.values().all(|listed| *listed),
            broken: self.broken.values().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Item = watcher::Result<watcher::Event<()>>;

    #[test]
    fn a_watch_that_broke_off_is_named_until_it_is_answered_again() {
        let feed = Feed::new(["hooks of a".to_owned(), "hooks of b".to_owned()]);
        let state = || feed.subscribe().borrow().state();
        assert!(!state().listed);
        let item: Item = Ok(watcher::Event::InitDone);
        feed.note("hooks of a", &item);
        assert!(!state().listed, "b is awaited");
        feed.note("hooks of b", &item);
        assert!(state().listed);
        let broken: Item = Err(watcher::Error::NoResourceVersion);
        feed.note("hooks of a", &broken);
        let first = state().broken;
        assert_eq!(first.len(), 1);
        feed.note("hooks of a", &broken);
        assert_eq!(state().broken, first, "since when stays");
        feed.answered("hooks of b");
        assert_eq!(state().broken.len(), 1);
        feed.answered("hooks of a");
        assert!(state().broken.is_empty());
    }

    #[test]
    fn only_news_wake() {
        let feed = Feed::new(["hooks".to_owned()]);
        let mut news = feed.subscribe();
        feed.answered("hooks");
        let item: Item = Ok(watcher::Event::InitApply(()));
        feed.note("hooks", &item);
        assert!(!news.has_changed().unwrap());
        feed.changed();
        assert!(news.has_changed().unwrap());
        assert_eq!(news.borrow_and_update().version, 1);
    }
}
