//! One test program for all exporters, so that it is linked once.

mod breakdowns;
mod browser;
mod devtools;
mod formats;
mod otlp;
mod page;
mod support;
