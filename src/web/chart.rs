//! Small charts, drawn by the server.

use maud::{Markup, html};

/// The size of a chart in its own units; the style makes it as wide as its place.
const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 48.0;

/// A value over time.
pub(super) struct Chart<'a> {
    pub(super) name: &'a str,
    /// The latest value, with its unit.
    pub(super) latest: String,
    /// The oldest first. None where nothing is known.
    pub(super) values: Vec<Option<f64>>,
    /// What is at the top; none for the largest of the values.
    pub(super) top: Option<f64>,
    /// The largest value, with its unit.
    pub(super) largest: String,
}

/// The figure of a chart. Whoever does not see it hears the latest and the largest value.
pub(super) fn figure(chart: &Chart<'_>) -> Markup {
    let spoken = format!("{}: {}, at most {}", chart.name, chart.latest, chart.largest);
    html! {
        figure {
            figcaption { span { (chart.name) } strong { (chart.latest) } }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(spoken) {
                title { (spoken) }
                @for run in runs(chart) {
                    path.area d={ (line(&run)) " L" (format!("{:.1}", run[run.len() - 1].0)) "," (HEIGHT) " L" (format!("{:.1}", run[0].0)) "," (HEIGHT) " Z" } {}
                    path.curve d=(line(&run)) {}
                }
                line.axis x1="0" x2=(WIDTH) y1=(HEIGHT) y2=(HEIGHT) {}
            }
            span.quiet { "at most " (chart.largest) }
        }
    }
}

/// The points of the curve, in one run for each stretch of time of which something is known.
fn runs(chart: &Chart<'_>) -> Vec<Vec<(f64, f64)>> {
    let largest = chart.values.iter().flatten().copied().fold(0.0, f64::max);
    let top = chart.top.unwrap_or(largest).max(f64::MIN_POSITIVE);
    let step = WIDTH / chart.values.len().saturating_sub(1).max(1) as f64;
    let place = |(index, value): (usize, f64)| {
        (index as f64 * step, (HEIGHT - 1.0) - (value / top).clamp(0.0, 1.0) * (HEIGHT - 2.0))
    };
    let mut runs = vec![Vec::new()];
    for (index, value) in chart.values.iter().enumerate() {
        match (value, runs.last_mut()) {
            (Some(value), Some(run)) => run.push(place((index, *value))),
            (Some(_), None) => {}
            (None, _) => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

fn line(run: &[(f64, f64)]) -> String {
    let points: Vec<String> = run.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!("M{}", points.join(" L"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_leaves_a_gap() {
        let values = vec![Some(0.0), Some(5.0), None, Some(10.0)];
        let chart = Chart { name: "<b>", latest: "10".into(), values, top: None, largest: "10".into() };
        assert_eq!(runs(&chart), [vec![(0.0, 47.0), (80.0, 24.0)], vec![(240.0, 1.0)]]);
        let figure = figure(&chart).into_string();
        assert!(figure.contains("role=\"img\"") && figure.contains("&lt;b&gt;: 10"), "{figure}");
    }

    #[test]
    fn a_chart_of_nothing_is_empty() {
        let chart = Chart { name: "a", latest: "0".into(), values: vec![], top: None, largest: "0".into() };
        assert!(runs(&chart).is_empty());
        let flat = Chart { values: vec![Some(0.0)], ..chart };
        assert_eq!(runs(&flat), [vec![(0.0, 47.0)]]);
    }
}
