//! The pages lead where they say, and name every word that khook may say of what is wrong.

#![allow(missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use e2e::markdown::{Page, root};

/// A path without `..` in it.
fn tidy(path: PathBuf) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(tidy.pop()),
            std::path::Component::CurDir => {}
            part => tidy.push(part),
        }
    }
    tidy
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let pages = Page::all()?;
    let anchors: BTreeMap<_, _> = pages.iter().map(|page| (page.name.clone(), &page.anchors)).collect();
    let (mut followed, mut wrong) = (0, Vec::new());
    for page in &pages {
        for (line, link) in &page.links {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.name.clone(),
                path => tidy(page.name.with_file_name("").join(path)),
            };
            let there = root().join(&target).exists();
            let named = anchor.is_empty() || anchors.get(&target).is_some_and(|all| all.contains(anchor));
            if !there || !named {
                wrong.push(format!("{}:{line}: {link}", page.name.display()));
            }
        }
    }
    ensure!(wrong.is_empty(), "these lead nowhere:\n{}", wrong.join("\n"));
    ensure!(followed > 60, "{followed} links");
    Ok(())
}

#[test]
fn every_reason_of_a_condition_is_explained() -> Result<()> {
    // Words such as AgentUrlNotAllowed, in the sources of all that a condition can say.
    let sources = ["src/incident/summary.rs", "src/incident/rules.rs", "src/agent/direct.rs"];
    let page = fs::read_to_string(root().join("docs/troubleshooting.md"))?;
    let (mut words, mut missing) = (BTreeSet::new(), Vec::new());
    for source in sources {
        let text = fs::read_to_string(root().join(source)).with_context(|| format!("reading {source}"))?;
        // Tests make words up.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in code.split('"').skip(1).step_by(2) {
            let capitals = word.chars().filter(char::is_ascii_uppercase).count();
            let is_word =
                word.chars().all(|c| c.is_ascii_alphabetic()) && word.starts_with(char::is_uppercase);
            if is_word && capitals > 1 {
                words.insert(word.to_owned());
            }
        }
    }
    ensure!(words.len() > 12 && words.contains("PromptInvalid"), "{words:?}");
    // These never get into a condition: an apiserver in trouble says nothing of the Hook, and of what is merely
    // unclear the message tells.
    for word in ["SecretUnavailable", "PromptUnclear"] {
        ensure!(words.remove(word), "{words:?}");
    }
    missing.extend(words.iter().filter(|word| !page.contains(&format!("`{word}`"))));
    ensure!(missing.is_empty(), "docs/troubleshooting.md does not explain {missing:?}");
    Ok(())
}

#[test]
fn one_version_of_rust_is_written_everywhere() -> Result<()> {
    let read = |name: &str| fs::read_to_string(root().join(name)).with_context(|| format!("reading {name}"));
    let manifest = read("Cargo.toml")?;
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let version = version.context("no rust-version in Cargo.toml")?.trim_matches('"').to_owned();
    for (file, words) in [
        ("Dockerfile", format!("ARG RUST_VERSION={version}\n")),
        (".github/workflows/ci.yml", format!("rustup toolchain install {version} ")),
        ("README.md", format!("Rust {version} ")),
        ("CONTRIBUTING.md", format!("Rust {version} ")),
    ] {
        ensure!(read(file)?.contains(&words), "{file} does not say {words:?}");
    }
    Ok(())
}
