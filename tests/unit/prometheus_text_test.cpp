#include "launch/prometheus_text.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(PrometheusText, CountersAndLabels) {
  PrometheusText text({{"model", "a\"b\\c\nd"}});
  text.family("x_total", "counter", "All of them.");
  text.sample(12345678901.0, {{"rank", "0"}});
  text.sample(0.25);
  EXPECT_EQ(text.take(),
            "# HELP x_total All of them.\n# TYPE x_total counter\n"
            "x_total{model=\"a\\\"b\\\\c\\nd\",rank=\"0\"} 12345678901\n"
            "x_total{model=\"a\\\"b\\\\c\\nd\"} 0.25\n");
}

TEST(PrometheusText, HistogramsAreCumulative) {
  Histogram histogram({1, 2.5});
  for (const double value : {0.5, 1.0, 2.0, 100.0}) histogram.observe(value);
  PrometheusText text({});
  text.family("h", "histogram", "h");
  text.sample(histogram);
  EXPECT_EQ(text.take(),
            "# HELP h h\n# TYPE h histogram\n"
            "h_bucket{le=\"1\"} 2\nh_bucket{le=\"2.5\"} 3\nh_bucket{le=\"+Inf\"} 4\nh_sum 103.5\nh_count 4\n");
}

}  // namespace
}  // namespace shoal
