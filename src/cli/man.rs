//! `khook man` prints the manual page.

use std::process::ExitCode;

use super::{Error, output::print};

/// Prints it: the page of khook, and below it those of its commands.
pub fn main() -> Result<ExitCode, Error> {
    let mut command = super::command(false);
    command.build();
    let mut page = Vec::new();
    let io = Error::because("no manual page");
    render(&command, &mut page).map_err(io)?;
    print(String::from_utf8_lossy(&page).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn render(command: &clap::Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    clap_mangen::Man::new(command.clone()).render(page)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        // One page holds all: who types `khook man` reads on.
        let name = sub.get_name().to_uppercase();
        let man = clap_mangen::Man::new(sub.clone());
        page.extend_from_slice(format!(".SH \"KHOOK {name}\"\n").as_bytes());
        let mut part = Vec::new();
        man.render_synopsis_section(&mut part)?;
        man.render_description_section(&mut part)?;
        man.render_options_section(&mut part)?;
        // Its sections are sections of a section here.
        page.extend_from_slice(String::from_utf8_lossy(&part).replace(".SH ", ".SS ").as_bytes());
    }
    Ok(())
}
