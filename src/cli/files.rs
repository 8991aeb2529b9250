//! Files are what a command is told to read: names of files and folders, or `-` for standard input.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::Error;

/// Longest file that is read. No object that an apiserver takes is near it.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Standard input, as an argument and in what is said.
pub const STDIN: &str = "-";

/// A file and what is in it, or why nobody knows.
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: Result<Vec<u8>, String>,
}

/// The files that arguments name; of folders those with objects in them, in the order of their names.
pub fn read(arguments: &[PathBuf]) -> impl Iterator<Item = Input> {
    arguments.iter().flat_map(|argument| {
        let mut found = Vec::new();
        find(argument, true, &mut found);
        if found.is_empty() {
            // A path that is not the one that was meant is not sound.
            found.push((argument.clone(), Some("has no .yaml, .yml or .json file in it".into())));
        }
        found.into_iter().map(|(path, unread)| Input {
            name: path.display().to_string(),
            bytes: unread.map_or_else(|| bytes(&path), Err),
        })
    })
}

/// One file.
///
/// # Errors
/// Where it cannot be read.
pub fn read_one(path: &Path) -> Result<Vec<u8>, Error> {
    bytes(path).map_err(|why| Error::new(format!("{}: {why}", path.display())))
}

fn find(path: &Path, named: bool, found: &mut Vec<(PathBuf, Option<String>)>) {
    if !path.is_dir() {
        let objects =
            path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
        if named || objects {
            found.push((path.to_owned(), None));
        }
        return;
    }
    let names = std::fs::read_dir(path).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>()
    });
    match names {
        Ok(mut names) => {
            names.sort();
            for name in names {
                // A link to a folder may lead back; what is hidden is not meant.
                let hidden = name.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                let leads_away = name.is_symlink() && name.is_dir();
                if !hidden && !leads_away {
                    find(&name, false, found);
                }
            }
        }
        Err(error) => found.push((path.to_owned(), Some(unread(&error)))),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = if path == Path::new(STDIN) {
        io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| unread(&error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("is larger than {} MiB, and no file of objects", MAX_BYTES / 1024 / 1024));
    }
    Ok(bytes)
}

fn unread(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file or folder".into(),
        io::ErrorKind::PermissionDenied => "may not be read by you".into(),
        _ => format!("cannot be read: {error}"),
    }
}
