//! A union makes one list of several, each of one namespace, for a reader that knows of one list only.
//!
//! A list that is begun anew (after a 410, say) would make such a reader forget all other namespaces. So what
//! each list has is kept here, and whenever one of them is complete, the reader gets all of it as a new list.

use std::collections::HashMap;

use kube::{Resource, ResourceExt, runtime::watcher::Event};

/// What the lists of some namespaces contain.
pub struct Union<K> {
    parts: Vec<Part<K>>,
}

struct Part<K> {
    objects: HashMap<String, K>,
    /// The list that is being read.
    listing: Option<HashMap<String, K>>,
}

impl<K: Resource + Clone> Union<K> {
    /// Of this many lists. One that cannot be read, because its namespace is gone, holds up no other.
    pub fn new(lists: usize) -> Self {
        let empty = || Part { objects: HashMap::new(), listing: None };
        Self { parts: std::iter::repeat_with(empty).take(lists).collect() }
    }

    /// Takes in what one of the lists says, and answers what is to be said of all.
    pub fn step(&mut self, list: usize, event: Event<K>) -> Vec<Event<K>> {
        // One alone is already what the reader wants; nothing is kept of it.
        let [_, _, ..] = self.parts[..] else { return vec![event] };
        let Some(part) = self.parts.get_mut(list) else { return Vec::new() };
        match event {
            Event::Init => part.listing = Some(HashMap::new()),
            Event::InitApply(object) => {
                part.listing.get_or_insert_default().insert(object.name_any(), object);
            }
            Event::InitDone => {
                part.objects = part.listing.take().unwrap_or_default();
                let all = self.parts.iter().flat_map(|part| part.objects.values());
                let all = all.cloned().map(Event::InitApply);
                return [Event::Init].into_iter().chain(all).chain([Event::InitDone]).collect();
            }
            Event::Apply(object) => {
                part.objects.insert(object.name_any(), object.clone());
                return vec![Event::Apply(object)];
            }
            Event::Delete(object) => {
                part.objects.remove(&object.name_any());
                return vec![Event::Delete(object)];
            }
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    use super::*;

    fn object(namespace: &str, name: &str) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    /// What the reader hears, in one line.
    fn heard(events: Vec<Event<ConfigMap>>) -> String {
        let name = |object: &ConfigMap| format!("{}/{}", object.namespace().unwrap(), object.name_any());
        let mut words: Vec<String> = events
            .iter()
            .map(|event| match event {
                Event::Init => "<".to_owned(),
                Event::InitApply(object) => name(object),
                Event::InitDone => ">".to_owned(),
                Event::Apply(object) => format!("+{}", name(object)),
                Event::Delete(object) => format!("-{}", name(object)),
            })
            .collect();
        if words.len() > 2 {
            let last = words.len() - 1;
            words[1..last].sort();
        }
        words.join(" ")
    }

    fn list(union: &mut Union<ConfigMap>, list: usize, objects: &[(&str, &str)]) -> String {
        let mut events = union.step(list, Event::Init);
        for (namespace, name) in objects {
            events.extend(union.step(list, Event::InitApply(object(namespace, name))));
        }
        events.extend(union.step(list, Event::InitDone));
        heard(events)
    }

    #[test]
    fn a_list_that_begins_anew_takes_away_only_what_was_in_it() {
        let mut union = Union::new(3);
        assert_eq!(list(&mut union, 0, &[("a", "x"), ("a", "y")]), "< a/x a/y >");
        // The third is never listed, and nobody waits for it.
        assert_eq!(list(&mut union, 1, &[("b", "x")]), "< a/x a/y b/x >");
        assert_eq!(heard(union.step(1, Event::Apply(object("b", "z")))), "+b/z");
        assert_eq!(heard(union.step(1, Event::Delete(object("b", "x")))), "-b/x");
        assert_eq!(list(&mut union, 0, &[("a", "y")]), "< a/y b/z >");
        // A list that breaks off changes nothing.
        assert_eq!(heard(union.step(0, Event::Init)), "");
        assert_eq!(heard(union.step(0, Event::InitApply(object("a", "new")))), "");
        assert_eq!(list(&mut union, 1, &[]), "< a/y >");
        assert_eq!(list(&mut union, 0, &[]), "< >");
    }

    #[test]
    fn one_list_stays_as_it_is() {
        let mut union = Union::new(1);
        assert_eq!(list(&mut union, 0, &[("a", "x")]), "< a/x >");
        assert_eq!(heard(union.step(0, Event::Apply(object("a", "y")))), "+a/y");
    }
}
