package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// step is the time between two samples of a series, and between two evaluations: Prometheus' default.
const step = time.Minute

// evaluation is a time that passes, and what is scraped in it.
type evaluation struct {
	// Series as in promtool's unit tests, `name{label="value"} 0+1x10`: a sample every minute, the first at time 0.
	Series []string `json:"series"`
	// Minutes is when the evaluation ends.
	Minutes int `json:"minutes"`
}

// alert is one that has fired, as its last evaluation in this time has it.
type alert struct {
	Name    string            `json:"name"`
	Labels  map[string]string `json:"labels"`
	Summary string            `json:"summary"`
	// From and To: minutes at which it fired first and last.
	From int `json:"from"`
	To   int `json:"to"`
}

// evaluate runs all alerts every minute, by Prometheus' engine and templates.
//
// Of rules.AlertingRule it repeats when an alert fires: once its expression has had a result with the same labels for
// the time `for`. The package itself imports the clients of AWS, Azure and Google.
func evaluate(groups *rulefmt.RuleGroups, given evaluation) ([]alert, error) {
	ctx := context.Background()
	series, err := parseSeries(given.Series)
	if err != nil {
		return nil, err
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: math.MaxInt32, Timeout: time.Minute})
	ask := func(ctx context.Context, expression string, at time.Time) (promql.Vector, error) {
		made, err := engine.NewInstantQuery(ctx, series, nil, expression, at)
		if err != nil {
			return nil, err
		}
		defer made.Close()
		result := made.Exec(ctx)
		if result.Err != nil {
			return nil, result.Err
		}
		if scalar, ok := result.Value.(promql.Scalar); ok {
			return promql.Vector{{T: scalar.T, F: scalar.V}}, nil
		}
		return result.Vector()
	}
	fired := []alert{}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			ofRule, err := evaluateRule(ctx, rule, given.Minutes, ask)
			if err != nil {
				return nil, err
			}
			fired = append(fired, ofRule...)
		}
	}
	return fired, nil
}

// query is the value of an expression at a time.
type query func(ctx context.Context, expression string, at time.Time) (promql.Vector, error)

func evaluateRule(ctx context.Context, rule rulefmt.Rule, minutes int, ask query) ([]alert, error) {
	if rule.Alert == "" || rule.KeepFiringFor != 0 {
		return nil, errors.New("only alerts without keep_firing_for are evaluated")
	}
	var fired []alert
	// By their labels: since when, in minutes, the expression has had a result; and the index in `fired`.
	since, current := map[string]int{}, map[string]int{}
	for minute := 0; minute <= minutes; minute++ {
		at := time.Unix(0, 0).Add(time.Duration(minute) * step)
		results, err := ask(ctx, rule.Expr, at)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", rule.Alert, err)
		}
		seen := map[string]bool{}
		for _, result := range results {
			expand := func(text string) (string, error) {
				return expanded(ctx, text, result, at, ask)
			}
			all := result.Metric.Map()
			delete(all, labels.MetricName)
			for name, text := range rule.Labels {
				if all[name], err = expand(text); err != nil {
					return nil, err
				}
			}
			key := labels.FromMap(all).String()
			seen[key] = true
			if _, ok := since[key]; !ok {
				since[key] = minute
			}
			if time.Duration(minute-since[key])*step < time.Duration(rule.For) {
				continue
			}
			summary, err := expand(rule.Annotations["summary"])
			if err != nil {
				return nil, err
			}
			if index, ok := current[key]; ok {
				fired[index].To, fired[index].Summary = minute, summary
				continue
			}
			current[key] = len(fired)
			fired = append(fired, alert{Name: rule.Alert, Labels: all, Summary: summary, From: minute, To: minute})
		}
		for key := range since {
			if !seen[key] {
				delete(since, key)
				delete(current, key)
			}
		}
	}
	return fired, nil
}

// expanded is a template of a label or an annotation with its variables, as rules.AlertingRule sets them.
func expanded(
	ctx context.Context,
	text string,
	result promql.Sample,
	at time.Time,
	ask query,
) (string, error) {
	const variables = "{{$labels := .Labels}}{{$value := .Value}}"
	data := template.AlertTemplateData(result.Metric.Map(), nil, "", result)
	time := model.TimeFromUnix(at.Unix())
	expander := template.NewTemplateExpander(
		ctx, variables+text, "alert", data, time, template.QueryFunc(ask), nil, nil,
	)
	return expander.Expand()
}

// memory is a storage of few series.
type memory []storage.Series

type sample struct {
	at    int64
	value float64
}

func (s sample) T() int64                      { return s.at }
func (s sample) F() float64                    { return s.value }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

func parseSeries(texts []string) (memory, error) {
	var all memory
	for _, text := range texts {
		lset, values, err := parser.ParseSeriesDesc(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
		var samples []chunks.Sample
		for index, value := range values {
			if !value.Omitted {
				samples = append(samples, sample{at: int64(index) * step.Milliseconds(), value: value.Value})
			}
		}
		all = append(all, storage.NewListSeries(lset, samples))
	}
	return all, nil
}

func (m memory) Querier(_, _ int64) (storage.Querier, error) { return m, nil }
func (m memory) Close() error                                { return nil }

func (m memory) Select(
	_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher,
) storage.SeriesSet {
	found := &seriesSet{at: -1}
	for _, series := range m {
		lset := series.Labels()
		if !slices.ContainsFunc(matchers, func(matcher *labels.Matcher) bool {
			return !matcher.Matches(lset.Get(matcher.Name))
		}) {
			found.series = append(found.series, series)
		}
	}
	return found
}

func (m memory) LabelValues(
	context.Context, string, *storage.LabelHints, ...*labels.Matcher,
) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.New("no expression asks for values of labels")
}

func (m memory) LabelNames(
	context.Context, *storage.LabelHints, ...*labels.Matcher,
) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.New("no expression asks for names of labels")
}

type seriesSet struct {
	series []storage.Series
	at     int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.series) }
func (s *seriesSet) At() storage.Series                { return s.series[s.at] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }
