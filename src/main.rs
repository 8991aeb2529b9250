//! The khook binary; all of it is in the library.

fn main() -> std::process::ExitCode {
    khook::cli::main()
}
