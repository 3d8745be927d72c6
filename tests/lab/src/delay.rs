//! Where a delay is put and how long it is: the grammar of `--delays` and of the `x-lab-delay` header.
//!
//! A plan lists the choices, `reviews.app=0,500us,5ms;productpage.sidecar_out=0,5ms`; the load generator draws from it
//! for every request and writes what it drew into the header, `reviews.app=5000us;productpage.sidecar_out=0us`. Every
//! component takes what is addressed to it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;

/// No delay may be longer: a slip of the unit must not hang a run.
const LONGEST: Duration = Duration::from_secs(60);

/// What is wrong with a delay, in the words of its writer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DelayError {
    /// The duration has no known unit or no number.
    #[error("`{0}` is no duration: write a number with its unit, such as 500us, 5ms or 1s")]
    Duration(String),
    /// The duration is beyond a minute.
    #[error("`{0}` is longer than a minute")]
    TooLong(String),
    /// There is no such place for a delay.
    #[error("`{0}` is no place for a delay: write WORKLOAD.app, .app_spin, .sidecar_out or .sidecar_in")]
    Site(String),
    /// An entry without its value.
    #[error("`{0}` lacks its value: write WORKLOAD.PLACE=DURATION")]
    Value(String),
}

/// Reads `0`, `500us`, `1.5ms`, `20ns`, `2s`.
pub fn parse_duration(text: &str) -> Result<Duration, DelayError> {
    let text = text.trim();
    let wrong = || DelayError::Duration(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let split = text.find(|c: char| c.is_ascii_alphabetic() || c == 'µ').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let unit_ns: f64 = match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" | "min" => 60e9,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    if !number.is_finite() || number < 0.0 {
        return Err(wrong());
    }
    Ok(Duration::from_nanos((number * unit_ns).round() as u64))
}

fn parse_delay(text: &str) -> Result<Duration, DelayError> {
    let delay = parse_duration(text)?;
    if delay > LONGEST { Err(DelayError::TooLong(text.to_owned())) } else { Ok(delay) }
}

/// Writes a duration so that [`parse_duration`] reads it back without loss.
fn render_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    if ns.is_multiple_of(1000) { format!("{}us", ns / 1000) } else { format!("{ns}ns") }
}

/// Where in a pod a delay sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// The application sleeps before it answers.
    App,
    /// The application burns CPU before it answers.
    AppSpin,
    /// The sidecar waits on the way out of the pod, in `ext_authz` of the outbound listener.
    SidecarOut,
    /// The sidecar waits on the way into the pod, in `ext_authz` of the inbound listener.
    SidecarIn,
}

impl Site {
    /// Whether the delay needs a mesh that was brought up with `--ext-authz`.
    pub fn needs_ext_authz(self) -> bool {
        matches!(self, Self::SidecarOut | Self::SidecarIn)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::App => "app",
            Self::AppSpin => "app_spin",
            Self::SidecarOut => "sidecar_out",
            Self::SidecarIn => "sidecar_in",
        })
    }
}

/// A workload (`reviews-v2`) or a service (`reviews`: all of its workloads), and the place in its pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The workload's or the service's name.
    pub workload: String,
    /// The place in its pods.
    pub site: Site,
}

impl FromStr for Target {
    type Err = DelayError;

    fn from_str(text: &str) -> Result<Self, DelayError> {
        let wrong = || DelayError::Site(text.to_owned());
        let (workload, site) = text.trim().rsplit_once('.').ok_or_else(wrong)?;
        let site = match site {
            "app" => Site::App,
            "app_spin" => Site::AppSpin,
            "sidecar_out" => Site::SidecarOut,
            "sidecar_in" => Site::SidecarIn,
            _ => return Err(wrong()),
        };
        if workload.is_empty() {
            return Err(wrong());
        }
        Ok(Self { workload: workload.to_owned(), site })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.workload, self.site)
    }
}

fn entries(text: &str) -> impl Iterator<Item = Result<(Target, &str), DelayError>> {
    text.split(';').map(str::trim).filter(|entry| !entry.is_empty()).map(|entry| {
        let (target, value) = entry.split_once('=').ok_or_else(|| DelayError::Value(entry.to_owned()))?;
        Ok((target.parse()?, value))
    })
}

/// What one request's delays are: the value of `x-lab-delay`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delays(Vec<(Target, Duration)>);

impl Delays {
    /// Every delay, zeros among them, in the order of the plan.
    pub fn iter(&self) -> impl Iterator<Item = (&Target, Duration)> {
        self.0.iter().map(|(target, delay)| (target, *delay))
    }

    /// Whether nothing is addressed to anybody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is addressed to this place of a workload. Its own name counts before that of its service.
    pub fn at(&self, workload: &str, service: &str, site: Site) -> Option<Duration> {
        let named =
            |name: &str| self.0.iter().find(|(target, _)| target.site == site && target.workload == name).map(|e| e.1);
        named(workload).or_else(|| named(service))
    }
}

impl FromStr for Delays {
    type Err = DelayError;

    fn from_str(text: &str) -> Result<Self, DelayError> {
        entries(text)
            .map(|entry| entry.and_then(|(target, delay)| Ok((target, parse_delay(delay)?))))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (target, delay)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ";" };
            write!(f, "{separator}{target}={}", render_duration(*delay))?;
        }
        Ok(())
    }
}

/// Whether the places of a plan are drawn on their own, or only one of them per request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DrawMode {
    /// Every place draws from its own choices: a factorial design, which separates the places by statistics.
    #[default]
    Independent,
    /// One place, chosen at random, draws; all others are 0: shows each place alone.
    Single,
}

/// The choices from which each request's delays are drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DelayPlan(Vec<(Target, Vec<Duration>)>);

impl DelayPlan {
    /// The places that may be delayed.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.0.iter().map(|(target, _)| target)
    }

    /// One request's delays. Every place of the plan is in the result, so that the log tells "drawn as 0" from "not asked".
    pub fn draw(&self, mode: DrawMode, rng: &mut impl Rng) -> Delays {
        let chosen = match mode {
            DrawMode::Independent => None,
            DrawMode::Single if self.0.is_empty() => None,
            DrawMode::Single => Some(rng.random_range(0..self.0.len())),
        };
        let draw = |(i, (target, choices)): (usize, &(Target, Vec<Duration>))| {
            let silent = chosen.is_some_and(|chosen| chosen != i);
            let delay = if silent { Duration::ZERO } else { choices.choose(rng).copied().unwrap_or_default() };
            (target.clone(), delay)
        };
        Delays(self.0.iter().enumerate().map(draw).collect())
    }
}

impl FromStr for DelayPlan {
    type Err = DelayError;

    fn from_str(text: &str) -> Result<Self, DelayError> {
        let choices = |value: &str| value.split(',').map(parse_delay).collect::<Result<Vec<_>, _>>();
        entries(text)
            .map(|entry| entry.and_then(|(target, value)| Ok((target, choices(value)?))))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn durations_are_read_in_every_unit() {
        let cases = [
            ("0", 0),
            ("20ns", 20),
            ("500us", 500_000),
            ("500µs", 500_000),
            ("1.5ms", 1_500_000),
            ("2s", 2_000_000_000),
        ];
        for (text, ns) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
        for text in ["", "5", "ms", "-1ms", "5 parsecs", "NaNms", "1e400s", "infs"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_plan_names_its_places_and_choices() {
        let plan: DelayPlan = "reviews.app=0,500us,5ms; productpage.sidecar_out=1ms;".parse().unwrap();
        assert_eq!(plan.0[0].1, [0, 500, 5000].map(Duration::from_micros));
        assert_eq!(plan.0[1].0, Target { workload: "productpage".into(), site: Site::SidecarOut });
        assert_eq!("reviews.app".parse::<DelayPlan>(), Err(DelayError::Value("reviews.app".into())));
        assert_eq!("reviews.disk=5ms".parse::<DelayPlan>(), Err(DelayError::Site("reviews.disk".into())));
        assert_eq!("a.app=2min".parse::<DelayPlan>(), Err(DelayError::TooLong("2min".into())));
    }

    #[test]
    fn the_same_seed_draws_the_same_delays_and_all_choices_occur() {
        let plan: DelayPlan = "a.app=0,1ms,2ms;b.sidecar_in=0,3ms".parse().unwrap();
        let draw = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..200).map(|_| plan.draw(DrawMode::Independent, &mut rng).to_string()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        let distinct: std::collections::BTreeSet<_> = draw(7).into_iter().collect();
        assert_eq!(distinct.len(), 6, "{distinct:?}");
    }

    #[test]
    fn a_single_draw_delays_one_place_at_most() {
        let plan: DelayPlan = "a.app=1ms;b.app=1ms;c.sidecar_in=1ms".parse().unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..100 {
            let delays = plan.draw(DrawMode::Single, &mut rng);
            assert_eq!(delays.iter().filter(|(_, delay)| !delay.is_zero()).count(), 1);
            assert_eq!(delays.iter().count(), 3);
        }
    }

    #[test]
    fn a_workloads_own_delay_counts_before_its_services() {
        let delays: Delays = "reviews.app=1ms;reviews-v2.app=2ms".parse().unwrap();
        assert_eq!(delays.at("reviews-v1", "reviews", Site::App), Some(Duration::from_millis(1)));
        assert_eq!(delays.at("reviews-v2", "reviews", Site::App), Some(Duration::from_millis(2)));
        assert_eq!(delays.at("reviews-v2", "reviews", Site::SidecarIn), None);
    }

    proptest! {
        #[test]
        fn a_header_reads_back_as_it_was_written(ns in proptest::collection::vec(0u64..60_000_000_000, 0..6)) {
            let sites = [Site::App, Site::AppSpin, Site::SidecarOut, Site::SidecarIn];
            let delays = Delays(ns.iter().enumerate().map(|(i, ns)| {
                (Target { workload: format!("w-{i}"), site: sites[i % 4] }, Duration::from_nanos(*ns))
            }).collect());
            prop_assert_eq!(delays.to_string().parse::<Delays>(), Ok(delays));
        }

        #[test]
        fn no_header_makes_the_parser_panic(text in "\\PC*") {
            let _ = text.parse::<Delays>();
            let _ = text.parse::<DelayPlan>();
        }
    }
}
