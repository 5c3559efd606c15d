"""Why a prediction is what it is: shares of codes and visits in a patient's predicted risk."""
