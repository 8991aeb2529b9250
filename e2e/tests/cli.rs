//! What khook prints at a prompt, word by word: help, success, and each error. `TRYCMD=overwrite` writes what it
//! prints now into `cli/`.

#![allow(missing_docs)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use e2e::prompt::Prompt;

const NOWHERE: &str = "/nowhere/kubeconfig";

fn khook() -> Result<(Prompt, PathBuf)> {
    // No cluster, whatever this machine has.
    let prompt = Prompt::at(Path::new(NOWHERE))?;
    let khook = prompt.path().join("khook");
    Ok((prompt, khook))
}

// Backslashes stand in the files as slashes: trycmd takes them for those of paths.
#[test]
fn khook_prints_what_is_written_here() -> Result<()> {
    let (_prompt, khook) = khook()?;
    let cases = trycmd::TestCases::new();
    cases.register_bin("khook", khook);
    cases.env("KUBECONFIG", NOWHERE).env("HOME", "/nowhere");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli");
    cases.case(folder.join("*.trycmd")).case(folder.join("*.toml"));
    cases.run();
    Ok(())
}

#[test]
fn shells_and_man_get_what_they_read() -> Result<()> {
    let (_prompt, khook) = khook()?;
    let print = |args: &[&str]| {
        let output = Command::new(&khook).args(args).output().context("khook")?;
        ensure!(
            output.status.success(),
            "khook {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    };
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = print(&["completions", shell])?;
        ensure!(script.contains("direct-agent-hosts"), "{shell} does not know a flag of validate");
    }
    let bash = print(&["completions", "bash"])?;
    let words = "COMP_WORDS=(khook val); COMP_CWORD=1; _khook khook val khook; echo ${COMPREPLY[@]}";
    let output = Command::new("bash").args(["-c", &format!("{bash}\n{words}")]).output().context("bash")?;
    ensure!(String::from_utf8_lossy(&output.stdout).trim() == "validate", "{output:?}");

    let page = print(&["man"])?;
    ensure!(page.contains(".TH khook 1"), "{page}");
    for section in [".SH NAME", ".SH \"KHOOK VALIDATE\"", ".SH \"KHOOK RUN\"", ".SS OPTIONS"] {
        ensure!(page.contains(section), "no {section}");
    }
    Ok(())
}
