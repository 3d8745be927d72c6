//! One test program for all exporters, so that it is linked once.

mod browser;
mod devtools;
mod formats;
mod page;
mod support;
