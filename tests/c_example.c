/* The C interface from plain C: normalizes two rows and checks them against the formula. */
#include <math.h>
#include <stdio.h>

#include "rmsnorm/rmsnorm.h"

int main(void) {
  const float x[2][3] = {{1, 2, 3}, {-4, 0, 4}};
  const float gamma[3] = {1, 2, 0.5f};
  float y[2][3], rstd[2];
  int row, i;

  rmsnorm_forward_args args = {0};
  args.size = sizeof(args);
  args.rows = 2;
  args.n = 3;
  args.x.data = (void*)x;
  args.x.row_stride = 3;
  args.x.dtype = RMSNORM_FLOAT32;
  args.gamma.data = gamma;
  args.gamma.dtype = RMSNORM_FLOAT32;
  args.y.data = y;
  args.y.row_stride = 3;
  args.y.dtype = RMSNORM_FLOAT32;
  args.rstd = rstd;
  args.epsilon = 1e-6;
  args.rounding = RMSNORM_ROUND_ONCE;
  if (rmsnorm_forward(&args, NULL) != RMSNORM_OK) {
    fprintf(stderr, "%s\n", rmsnorm_last_error());
    return 1;
  }
  for (row = 0; row < 2; ++row) {
    const double mean_square =
        (x[row][0] * x[row][0] + x[row][1] * x[row][1] + x[row][2] * x[row][2]) / 3.0;
    for (i = 0; i < 3; ++i) {
      const double expected = x[row][i] / sqrt(mean_square + 1e-6) * gamma[i];
      printf("%9.6f", y[row][i]);
      if (fabs(y[row][i] - expected) > 1e-6) return 2;
    }
    printf("\n");
  }
  args.epsilon = -1;
  if (rmsnorm_forward(&args, NULL) != RMSNORM_INVALID_ARGUMENT) return 3;
  printf("%s\n", rmsnorm_last_error());
  return 0;
}
