//! One test program for all exporters, so that it is linked once.

mod browser;
mod formats;
mod page;
mod support;
