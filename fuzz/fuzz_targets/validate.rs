//! The target `validate` for libFuzzer, whose hook aborts at a panic also where khook catches it: taken back.
#![no_main]
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| fuzz::validate(data));
