// rulecheck reads rules of Prometheus, and expressions of a dashboard, with Prometheus' own parser, and lists the
// metrics that they read.
//
//	rulecheck RULES.yaml < expressions.json > output.json
//
// Input: a list of expressions. Output: {"errors": [error], "metrics": [name]}.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

type output struct {
	Errors  []string `json:"errors"`
	Metrics []string `json:"metrics"`
}

// metricsOf returns the names of the metrics in an expression.
func metricsOf(expression string) ([]string, error) {
	parsed, err := parser.ParseExpr(expression)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", expression, err)
	}
	var names []string
	for _, matchers := range parser.ExtractSelectors(parsed) {
		for _, matcher := range matchers {
			if matcher.Name == labels.MetricName && matcher.Type == labels.MatchEqual {
				names = append(names, matcher.Value)
			}
		}
	}
	return names, nil
}

func main() {
	result := output{Errors: []string{}, Metrics: []string{}}
	groups, errs := rulefmt.ParseFile(os.Args[1], false, model.UTF8Validation)
	for _, err := range errs {
		result.Errors = append(result.Errors, err.Error())
	}
	var expressions []string
	if err := json.NewDecoder(os.Stdin).Decode(&expressions); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if groups != nil {
		for _, group := range groups.Groups {
			for _, rule := range group.Rules {
				expressions = append(expressions, rule.Expr)
			}
		}
	}
	for _, expression := range expressions {
		names, err := metricsOf(expression)
		if err != nil {
			result.Errors = append(result.Errors, err.Error())
		}
		result.Metrics = append(result.Metrics, names...)
	}
	slices.Sort(result.Metrics)
	result.Metrics = slices.Compact(result.Metrics)
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		os.Exit(1)
	}
}
