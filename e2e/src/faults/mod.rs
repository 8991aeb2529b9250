//! A fault run is one scenario played on real parts with something breaking at an exact moment, and a check
//! of what khook promises over the record of it.
//!
//! khook talks to the apiserver and to its agent through proxies. They number every request and every line
//! of a watch, so that "the third status write" is a place where something can be made to break; they write
//! down what passed; and the checker reads nothing but that record.

pub mod check;
pub mod deeds;
pub mod matrix;
pub mod point;
pub mod proxy;
pub mod record;
pub mod run;
pub mod scenarios;
