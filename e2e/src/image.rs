//! An image is a container image made without a registry: one layer around files of this machine, in
//! the archive format that `docker load`, `ctr images import` and `kind load image-archive` read.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ring::digest;
use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::process::binary;

/// Sleeps, so that a pod has a place to be.
pub const PAUSE: &str = "khook.test/pause:1";
/// A shell with the usual programs, for pods that get into trouble.
pub const BUSYBOX: &str = "khook.test/busybox:1";
/// khook, and the stand-in agent as `/e2e agent`.
pub const KHOOK: &str = "khook.test/khook:dev";

/// Nobody: a user that owns nothing and need not be in /etc/passwd.
const NONROOT: &str = "65532:65532";

/// What goes into an image.
#[derive(Debug)]
pub struct Image {
    /// Its name and tag.
    pub name: &'static str,
    entrypoint: Vec<String>,
    user: &'static str,
    files: Vec<Content>,
}

#[derive(Debug)]
enum Content {
    Folder { path: PathBuf, mode: u32 },
    Program { path: PathBuf, from: PathBuf },
    Link { path: PathBuf, to: PathBuf },
}

impl Image {
    /// [`PAUSE`], around the machine's static busybox.
    pub fn pause() -> Result<Self> {
        let entrypoint = ["/bin/busybox", "sleep", "2147483647"].map(str::to_owned).into();
        Ok(Self { name: PAUSE, entrypoint, user: "0:0", files: vec![busybox()?] })
    }

    /// [`BUSYBOX`], around the machine's static busybox.
    pub fn busybox() -> Result<Self> {
        let mut files = vec![Content::Folder { path: "tmp".into(), mode: 0o1777 }, busybox()?];
        files.extend(
            APPLETS
                .split_whitespace()
                .map(|applet| Content::Link { path: Path::new("bin").join(applet), to: "busybox".into() }),
        );
        Ok(Self { name: BUSYBOX, entrypoint: Vec::new(), user: "0:0", files })
    }

    /// [`KHOOK`]: the binary that `KHOOK_BIN` names, else our own, which is khook too; with the
    /// libraries they need.
    pub fn khook() -> Result<Self> {
        let mut programs = vec![(PathBuf::from("e2e"), binary()?)];
        let mut entrypoint = vec!["/e2e".to_owned(), "operator".to_owned()];
        if let Some(khook) = std::env::var_os("KHOOK_BIN") {
            programs.push(("khook".into(), khook.into()));
            entrypoint = vec!["/khook".to_owned()];
        }
        let mut libraries = BTreeSet::new();
        let mut files = Vec::new();
        for (path, from) in programs {
            libraries.extend(needed(&from)?);
            files.push(Content::Program { path, from });
        }
        files.extend(libraries.into_iter().map(|library| Content::Program {
            path: library.strip_prefix("/").unwrap_or(&library).to_owned(),
            from: library,
        }));
        Ok(Self { name: KHOOK, entrypoint, user: NONROOT, files })
    }

    /// Writes the archive.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let layer = archive.with_extension("layer");
        self.write_layer(&layer).with_context(|| format!("making the image {}", self.name))?;
        let hash = sha256(File::open(&layer)?)?;
        let config = json!({
            "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
            "os": "linux",
            "config": {
                "User": self.user,
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{hash}")]},
        })
        .to_string();
        let config_name = format!("{}.json", sha256(config.as_bytes())?);
        let layer_name = format!("{hash}/layer.tar");
        let manifest =
            json!([{"Config": config_name, "RepoTags": [self.name], "Layers": [layer_name]}]).to_string();
        let mut tar = Builder::new(BufWriter::new(File::create(archive).context("creating an archive")?));
        for (name, content) in [(&config_name, &config), (&"manifest.json".to_owned(), &manifest)] {
            let mut header = header(EntryType::Regular, 0o644);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content.as_bytes())?;
        }
        let mut header = header(EntryType::Regular, 0o644);
        header.set_size(fs::metadata(&layer)?.len());
        tar.append_data(&mut header, &layer_name, File::open(&layer)?)?;
        tar.into_inner()?.into_inner().context("writing an archive")?;
        fs::remove_file(&layer).context("removing a layer")
    }

    fn write_layer(&self, place: &Path) -> Result<()> {
        let mut tar = Builder::new(BufWriter::new(File::create(place).context("creating a layer")?));
        let mut folders = BTreeSet::new();
        for content in &self.files {
            let path = match content {
                Content::Folder { path, .. } | Content::Program { path, .. } | Content::Link { path, .. } => {
                    path
                }
            };
            // A folder that is not in the layer would be nobody's to enter but root's.
            let above: Vec<_> = path.ancestors().skip(1).filter(|path| *path != Path::new("")).collect();
            for folder in above.into_iter().rev() {
                if folders.insert(folder.to_owned()) {
                    tar.append_data(&mut header(EntryType::Directory, 0o755), folder, io::empty())?;
                }
            }
            match content {
                Content::Folder { path, mode } => {
                    tar.append_data(&mut header(EntryType::Directory, *mode), path, io::empty())?;
                }
                Content::Program { path, from } => {
                    let file = File::open(from).with_context(|| format!("opening {}", from.display()))?;
                    let mut header = header(EntryType::Regular, 0o755);
                    header.set_size(file.metadata()?.len());
                    tar.append_data(&mut header, path, file)?;
                }
                Content::Link { path, to } => {
                    tar.append_link(&mut header(EntryType::Symlink, 0o777), path, to)?;
                }
            }
        }
        tar.into_inner()?.into_inner().context("writing a layer")?;
        Ok(())
    }
}

const APPLETS: &str = "sh ash cat cp date dd echo env false grep head kill ls mkdir mv rm seq sleep tail test \
                       touch trap true wc wget yes";

fn busybox() -> Result<Content> {
    let from = program("busybox")?;
    ensure!(needed(&from)?.is_empty(), "{} is not the static busybox: run .ci/install-node", from.display());
    Ok(Content::Program { path: "bin/busybox".into(), from })
}

/// Where on PATH a program is, or what to do about it.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not on PATH: run .ci/install-node"))
}

/// The libraries a program is linked with, and the loader, as ldd tells; none for a static one.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let answer = Command::new("ldd").arg(program).output().context("running ldd")?;
    if !answer.status.success() {
        let words = String::from_utf8_lossy(&answer.stderr);
        ensure!(words.contains("not a dynamic"), "ldd {}: {}", program.display(), words.trim());
        return Ok(Vec::new());
    }
    // `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
    let text = String::from_utf8_lossy(&answer.stdout);
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

fn header(kind: EntryType, mode: u32) -> Header {
    // Size, owner and time stay 0: the same files make the same image.
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header
}

fn sha256(mut from: impl Read) -> Result<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer).context("reading what is hashed")? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_what_a_container_runtime_looks_for() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("khook-image-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir_all(&folder)?;
        let archive = folder.join("image.tar");
        Image::khook()?.write(&archive)?;
        let mut names = Vec::new();
        let mut manifest = String::new();
        for entry in tar::Archive::new(File::open(&archive)?).entries()? {
            let mut entry = entry?;
            names.push(entry.path()?.display().to_string());
            if names.last().is_some_and(|name| name == "manifest.json") {
                entry.read_to_string(&mut manifest)?;
            }
        }
        fs::remove_dir_all(&folder)?;
        let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
        assert_eq!(manifest[0]["RepoTags"][0], KHOOK);
        for named in [&manifest[0]["Config"], &manifest[0]["Layers"][0]] {
            assert!(names.iter().any(|name| Some(name.as_str()) == named.as_str()), "{named} in {names:?}");
        }
        Ok(())
    }
}
