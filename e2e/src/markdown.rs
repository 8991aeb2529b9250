//! A page is a Markdown file that people read: its code, its links, and the places in it that links can name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A Markdown file, read.
#[derive(Debug, Default)]
pub struct Page {
    /// Its path from the repository's root.
    pub name: PathBuf,
    /// Its fenced blocks of code.
    pub blocks: Vec<Block>,
    /// Where its links and pictures lead, with their lines.
    pub links: Vec<(usize, String)>,
    /// The anchors of its headings, as GitHub makes them.
    pub anchors: BTreeSet<String>,
}

/// A fenced block of code.
#[derive(Debug, PartialEq)]
pub struct Block {
    /// The line it begins in.
    pub line: usize,
    /// What stands behind the fence.
    pub info: String,
    /// The code.
    pub text: String,
}

impl Page {
    /// Every page of the repository: at its root, and in the folders with words for people.
    pub fn all() -> Result<Vec<Self>> {
        let root = root();
        let mut paths: Vec<PathBuf> = fs::read_dir(&root)?.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
        for folder in ["docs", "examples", "helm"] {
            paths.extend(files(&root.join(folder), "md")?);
        }
        paths.sort();
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(Self { name: path.strip_prefix(&root).unwrap_or(&path).to_owned(), ..Self::read(&text) })
        };
        paths.into_iter().map(read).collect()
    }

    /// Reads Markdown.
    pub fn read(text: &str) -> Self {
        let mut page = Self::default();
        let mut slugs: BTreeMap<String, usize> = BTreeMap::new();
        // The heading, and the block, that is being read.
        let (mut heading, mut block): (Option<String>, Option<Block>) = (None, None);
        let line = |range: &Range<usize>| text[..range.start].matches('\n').count() + 1;
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                    block = Some(Block { line: line(&range), info: info.to_string(), text: String::new() });
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push((line(&range), dest_url.to_string()));
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let slug = slug(&heading.take().unwrap_or_default());
                    let before = slugs.entry(slug.clone()).or_default();
                    page.anchors.insert(if *before == 0 { slug } else { format!("{slug}-{before}") });
                    *before += 1;
                }
                Event::Text(words) | Event::Code(words) => {
                    let target = block.as_mut().map(|block| &mut block.text).or(heading.as_mut());
                    target.into_iter().for_each(|target| target.push_str(&words));
                }
                _ => {}
            }
        }
        page
    }
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files below a folder with this extension, in order; none where there is no folder.
pub fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(found) };
    for entry in entries {
        let path = entry.context("reading a folder")?.path();
        if path.is_dir() {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|own| own == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The anchor of a heading.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_links_and_anchors_are_found() {
        let text = "# It's `a.b[]`\n\n```yaml hook\nspec: {}\n```\n\n- see [it](x.md#y), not `[that](z)`\n  ```\n  \
                    a:\n    b: 1\n  ```\n\nAfter.\n\n    [no](link)\n\n| [cell](c.md) |\n|---|\n\n## Same\n## Same\n";
        let page = Page::read(text);
        let block = |line, info: &str, text: &str| Block { line, info: info.into(), text: text.into() };
        assert_eq!(page.blocks, [block(3, "yaml hook", "spec: {}\n"), block(8, "", "a:\n  b: 1\n")]);
        assert_eq!(page.links, [(7, "x.md#y".to_owned()), (17, "c.md".to_owned())]);
        assert_eq!(page.anchors.iter().collect::<Vec<_>>(), ["its-ab", "same", "same-1"]);
    }
}
